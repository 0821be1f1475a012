//! No core is left of this process: its memory holds credentials and tokens, and a core goes where no one keeps it secret
//! (a directory, `systemd-coredump`, a crash reporter, a ticket).

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Forbids it, for as long as the process runs. The attribute is what counts: the limit says nothing to a program that the
/// kernel pipes cores to (core(5)). The limit is for programs that this one starts, since the attribute ends with `exec`.
///
/// With the attribute `/proc/PID` belongs to root, and only who has `CAP_SYS_PTRACE` may attach a debugger, read the memory
/// or follow links such as `/proc/PID/fd/1`: root of the host may as before, another process of the same user may not.
pub(crate) fn forbid() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn no_core_is_left() {
        forbid().unwrap();
        assert!(!prctl::get_dumpable().unwrap());
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }
}
