//! `cargo xtask demo`: what the product does, in front of one's eyes. Whatever is narrated is also asserted.

pub mod credentials;
mod groups;
mod jit;
mod rotation;
mod stage;
mod time_box;
mod tokens;

use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::{
    clock::Stopwatch,
    setup::{self, packages, sdk::Sdks},
    term,
};

use stage::Stage;
pub use tokens::{EXPECTED, Expected, SWAPPED, swap_manifest};

/// Arguments of `demo`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Keep the objects in a real kube-apiserver instead of a directory of manifests.
    #[arg(long)]
    kube: bool,
    /// Which story to tell.
    #[arg(long, value_name = "NAME", default_value = "tokens")]
    tour: Tour,
}

/// A story.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tour {
    /// Pods get tokens, are refused, and change identity.
    Tokens,
    /// Access between midnight and one o'clock on business days: to the second, with the API server down, whatever the clock does.
    TimeBox,
    /// Access when somebody asks and another one approves, taken back within a second; needs --kube.
    Jit,
    /// A directory group opens a Key Vault to a pod, and nothing in the cluster does.
    Groups,
    /// A client secret is rotated under a running application, after a wrong one was tried.
    Rotation,
}

impl Tour {
    /// Starts a lab, tells the story and takes the lab down. `assets`: where the binaries of a control plane are, for objects
    /// in an API server.
    ///
    /// # Errors
    /// Saying what did not happen as told.
    pub fn play(self, sdks: &Sdks, assets: Option<&Path>) -> anyhow::Result<()> {
        match self {
            Self::Tokens => Stage::play(assets, credentials::fill, |stage| tokens::story(stage, sdks)),
            Self::TimeBox => Stage::play(assets, time_box::fill, |stage| time_box::story(stage, sdks)),
            Self::Jit => {
                ensure!(assets.is_some(), "the API server says who asks and who approves: add --kube");
                Stage::play(assets, jit::fill, |stage| jit::story(stage, sdks))
            }
            Self::Groups => Stage::play(assets, groups::fill, |stage| groups::story(stage, sdks)),
            Self::Rotation => Stage::play(assets, rotation::fill, |stage| rotation::story(stage, sdks)),
        }
    }
}

/// Runs it.
///
/// # Errors
/// Saying what did not happen as told.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        arguments.kube || arguments.tour != Tour::Jit,
        "the API server says who asks and who approves: cargo xtask demo --kube --tour jit"
    );
    let watch = Stopwatch::start();
    term::heading("Set-up");
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::NETWORK)?;
    setup::build()?;
    let sdks = setup::sdk::ensure()?;
    let assets: Option<PathBuf> = if arguments.kube { Some(setup::kube::assets()?) } else { None };
    let built = Stopwatch::start();
    arguments.tour.play(&sdks, assets.as_deref())?;
    term::heading(format_args!("Done in {} ({} with set-up)", built.seconds(), watch.seconds()));
    Ok(())
}
