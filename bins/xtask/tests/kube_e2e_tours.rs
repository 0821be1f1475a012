//! The tours of `cargo xtask demo --kube`, which check whatever they tell.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use xtask::{demo::Tour, paths, setup};

/// One after the other: they are about seconds.
static STAGE: Mutex<()> = Mutex::new(());

fn play(tour: Tour) -> anyhow::Result<()> {
    let _alone = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let assets = match paths::variable("KUBEBUILDER_ASSETS") {
        Some(assets) => PathBuf::from(assets),
        None => setup::kube::assets()?,
    };
    tour.play(&setup::sdk::ensure()?, Some(&assets))
}

#[test]
fn time_box() -> anyhow::Result<()> {
    play(Tour::TimeBox)
}

#[test]
fn jit() -> anyhow::Result<()> {
    play(Tour::Jit)
}

#[test]
fn groups() -> anyhow::Result<()> {
    play(Tour::Groups)
}

#[test]
fn rotation() -> anyhow::Result<()> {
    play(Tour::Rotation)
}
