//! Standard error as the log: never waits for whoever reads it, and knows what it lost.
//!
//! A log whose reader stands still (a pipe that is full) would stop every thread that says something, the one that handles
//! SIGTERM included. Such a line is dropped and counted instead, like one that a full disk refuses.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat},
};
use tracing_subscriber::fmt::MakeWriter;

static LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines of the log could not be written since the process began.
pub fn lost_log_lines() -> u64 {
    LOST.load(Ordering::Acquire)
}

/// Makes writers to standard error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr {
    /// A file takes whatever there is room for; anything else may have to be waited for.
    may_block: bool,
}

impl Stderr {
    pub(crate) fn new() -> Self {
        Self { may_block: may_block(&io::stderr()) }
    }
}

/// Lines of the log that are ready to be written, past the formatter.
#[derive(Clone, Copy, Debug)]
pub struct LogLines(Stderr);

impl LogLines {
    /// To where the log goes.
    #[expect(clippy::new_without_default, reason = "it looks at what standard error is")]
    pub fn new() -> Self {
        Self(Stderr::new())
    }

    /// Writes a line, its end included; whether it was written. Never waits for whoever reads the log.
    pub fn write(&self, line: &[u8]) -> bool {
        let mut to = self.0.make_writer();
        to.put(line)
    }
}

fn may_block(output: &impl AsFd) -> bool {
    !fstat(output).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG)
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<io::StderrLock<'static>>;

    fn make_writer(&'a self) -> Self::Writer {
        // Held until the line is written: between looking for room and writing nobody else writes.
        Line { output: io::stderr().lock(), may_block: self.may_block, lost: &LOST }
    }
}

/// One line.
pub(crate) struct Line<W> {
    output: W,
    may_block: bool,
    lost: &'static AtomicU64,
}

impl<W: Write + AsFd> Line<W> {
    fn put(&mut self, line: &[u8]) -> bool {
        let room = !self.may_block || has_room(&self.output);
        let written = room && self.output.write_all(line).is_ok();
        if !written {
            self.lost.fetch_add(1, Ordering::AcqRel);
        }
        written
    }
}

impl<W: Write + AsFd> Write for Line<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line can be written at once: a pipe says so when it has room for PIPE_BUF bytes (poll(2), pipe(7)); lines are
/// shorter.
fn has_room(output: &impl AsFd) -> bool {
    let mut wanted = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
    let asked = poll(&mut wanted, PollTimeout::ZERO);
    asked.is_ok_and(|ready| ready > 0) && wanted[0].revents().is_some_and(|got| got.contains(PollFlags::POLLOUT))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_is_not_waited_for() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let (mut reader, writer) = io::pipe().unwrap();
        assert!(may_block(&writer));
        let mut line = Line { output: writer, may_block: true, lost: &LOST };
        let text = [b'x'; 1000];
        for _ in 0..200 {
            line.write_all(&text).unwrap();
        }
        let lost = LOST.load(Ordering::Acquire);
        assert!((100..200).contains(&lost), "a pipe holds 64 KiB: {lost} lost");
        drop(line);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all.len() as u64, (200 - lost) * 1000, "whole lines only");
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut line = Line { output: full, may_block: false, lost: &LOST };
        line.write_all(b"a line\n").unwrap();
        assert_eq!(LOST.load(Ordering::Acquire), 1);
        assert!(!may_block(&tempfile::tempfile().unwrap()));
    }
}
