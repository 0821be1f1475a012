//! Starting on clean ground, and leaving it clean: also after a lab that was killed.

use std::{fs, io, time::Duration};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Error, network::Network, place::Place, record::Record};
use crate::{files, process};

/// How long a lab may take to go by itself.
const GRACE: Duration = Duration::from_secs(25);

/// Makes the lab's directory; what a dead lab left there is removed first.
///
/// # Errors
/// A lab is running there, or the directory holds something else.
pub fn prepare(place: &Place) -> Result<(), Error> {
    if let Some(record) = Record::read(place) {
        if record.alive() {
            return Err(Error::Running { directory: place.root().to_owned(), pid: record.pid });
        }
        clean(place);
    }
    match fs::remove_dir(place.root()) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            return Err(Error::NotALab { directory: place.root().to_owned() });
        }
        _ => {}
    }
    if let Some(parent) = place.root().parent() {
        fs::create_dir_all(parent)?;
    }
    // Not recursive: of two that start at the same time, one finds that it exists.
    files::private_directory_new(place.root()).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Running { directory: place.root().to_owned(), pid: 0 },
        _ => Error::Io(error),
    })?;
    announce(place, &Record::default())
}

/// Writes that this process holds the lab.
pub(super) fn announce(place: &Place, record: &Record) -> Result<(), Error> {
    let pid = std::process::id();
    let started = process::started(pid).unwrap_or_default();
    Ok(Record { pid, started, ..record.clone() }.write(place)?)
}

/// Takes down the lab at `place`: asks the process that holds it, insists if need be, and removes what is left. False when
/// there was none.
///
/// # Errors
/// The process belongs to somebody else.
pub fn down(place: &Place) -> Result<bool, Error> {
    let Some(record) = Record::read(place) else { return Ok(false) };
    // A start that failed cleans up after itself: it holds the place, and must not end itself.
    if record.alive() && record.pid != std::process::id() {
        signal(&record, Signal::SIGTERM)?;
        if !gone(&record, GRACE) {
            signal(&record, Signal::SIGKILL)?;
            gone(&record, GRACE);
        }
    }
    clean(place);
    if place.root().exists() {
        return Err(Error::NotRemoved { directory: place.root().to_owned() });
    }
    Ok(true)
}

fn signal(record: &Record, signal: Signal) -> Result<(), Error> {
    let Ok(pid) = i32::try_from(record.pid) else { return Ok(()) };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(Error::Signal { pid: record.pid, source: error.into() }),
    }
}

/// Waits for the holding process and all of the lab's processes (which die with it) to be gone.
fn gone(record: &Record, limit: Duration) -> bool {
    const LOOK: Duration = Duration::from_millis(20);
    let running = || {
        record.alive() || record.processes.iter().any(|process| process::started(process.pid) == Some(process.started))
    };
    let looks = limit.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if !running() {
            return true;
        }
        std::thread::sleep(LOOK);
    }
    !running()
}

/// Removes network namespaces, mounts and the directory. Processes must be gone.
pub(super) fn clean(place: &Place) {
    let network = Network::for_root();
    for netns in network.names(&place.netns_prefix()) {
        network.remove(&netns);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below: Vec<&str> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| is_below(path, place)).collect();
    for path in below.into_iter().rev() {
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(place.root());
}

fn is_below(path: &str, place: &Place) -> bool {
    std::path::Path::new(path).starts_with(place.root())
}
