//! What can go wrong between a typed rule and the kernel, and what a person can do about it.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use crate::diff::Difference;
use crate::rule::Backend;

/// Why rules could not be made, read or put in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The redirect may not lead there.
    #[error(
        "cannot redirect {metadata} to {to}: {reason}. Give an IPv4 address of this node that pods can reach, and a port"
    )]
    Target {
        /// The endpoint pods call.
        metadata: SocketAddrV4,
        /// Where the redirect was to lead.
        to: SocketAddrV4,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// Not a back end's name.
    #[error("{given:?} is no netfilter back end: use nft, iptables-nft or iptables-legacy")]
    BackendName {
        /// What was given.
        given: String,
    },

    /// A program is not installed where it is looked for.
    #[error(
        "the program {tool} is not installed (looked in {searched}): install the Debian package {package}, `apt-get install {package}`"
    )]
    MissingTool {
        /// The program.
        tool: String,
        /// The Debian or Ubuntu package that has it.
        package: &'static str,
        /// The directories that were searched, with colons between.
        searched: String,
    },

    /// The `iptables` that is installed is the other variant, and the wanted one is not there.
    #[error(
        "{wanted} was asked for, but {} says it is {found}: install the variant (Debian package iptables has both), or choose the back end that this host uses", program.display()
    )]
    WrongVariant {
        /// The back end that was asked for.
        wanted: Backend,
        /// The program that is there.
        program: PathBuf,
        /// What it says of itself.
        found: String,
    },

    /// Another program held the lock of the xtables tools all the time.
    #[error(
        "another program held the lock /run/xtables.lock for {} s: `fuser -v /run/xtables.lock` names it; end it or let it finish ({command})", waited.as_secs()
    )]
    LockBusy {
        /// The command that waited.
        command: String,
        /// How long it waited.
        waited: Duration,
    },

    /// The kernel refused for lack of privilege.
    #[error(
        "`{command}` was refused: {message}. It needs root, or the capability NET_ADMIN in this network namespace (iptables-legacy: NET_RAW too, and write access to /run/xtables.lock)"
    )]
    Permission {
        /// The command that was refused.
        command: String,
        /// What it said.
        message: String,
    },

    /// A program could not be started.
    #[error("`{command}` could not be started: {source}")]
    Start {
        /// The command.
        command: String,
        /// What the system says.
        source: std::io::Error,
    },

    /// A program did not end in time and was killed.
    #[error("`{command}` did not end within {} s and was killed: the machine is overloaded, or the program waits for something", after.as_secs())]
    TimedOut {
        /// The command.
        command: String,
        /// The time it had.
        after: Duration,
    },

    /// A program failed for another reason.
    #[error("`{command}` failed (exit code {code}): {message}", code = code.map_or_else(|| "none, killed by a signal".to_owned(), |c| c.to_string()))]
    Failed {
        /// The command.
        command: String,
        /// Its exit code, none if a signal ended it.
        code: Option<i32>,
        /// What it wrote to standard error, shortened.
        message: String,
    },

    /// A program wrote something this version does not understand.
    #[error("`{command}` wrote something unexpected: {reason}. Please report this with the program's version")]
    Unreadable {
        /// The command.
        command: String,
        /// What was not understood.
        reason: String,
    },

    /// The rules were written and were not as written when read back: somebody else changes them all the time.
    #[error(
        "the rules were written {attempts} times and changed by somebody else each time: {}. Find the program that edits them (`nft monitor` shows it)",
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Unstable {
        /// How often they were written.
        attempts: u32,
        /// How they differ now.
        differences: Vec<Difference>,
    },
}

impl Error {
    /// Another attempt, with what is then found in the kernel, may succeed at once: the rules changed between reading and writing.
    pub(crate) fn is_race(&self) -> bool {
        matches!(self, Error::Failed { .. })
    }
}
