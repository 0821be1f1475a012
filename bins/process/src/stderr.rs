//! Standard error as the log: never waits for whoever reads it, and knows what it lost.
//!
//! A log whose reader stands still (a pipe that is full) would stop every thread that says something, the one that handles
//! SIGTERM included. Such a line is dropped and counted instead, like one that a full disk refuses. A line that is longer
//! than what a pipe takes at once is written piece by piece; what of it does not fit any more goes before the next line, so
//! that lines stay whole.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat},
};
use tracing_subscriber::fmt::MakeWriter;

/// What a pipe takes at once when poll(2) says that it can be written to (PIPE_BUF of Linux, pipe(7)).
const PIECE: usize = 4096;

static LOST: AtomicU64 = AtomicU64::new(0);
static REST: Mutex<Vec<u8>> = Mutex::new(Vec::new());

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
        Line { output: io::stderr().lock(), may_block: self.may_block, lost: &LOST, rest: &REST }
    }
}

/// One line.
pub(crate) struct Line<W> {
    output: W,
    may_block: bool,
    lost: &'static AtomicU64,
    /// The end of a line whose beginning has been written.
    rest: &'static Mutex<Vec<u8>>,
}

impl<W: Write + AsFd> Line<W> {
    fn put(&mut self, line: &[u8]) -> bool {
        let written = if self.may_block { self.put_what_fits(line) } else { self.output.write_all(line).is_ok() };
        if !written {
            self.lost.fetch_add(1, Ordering::AcqRel);
        }
        written
    }

    /// Whether the line has been begun: then all of it will be there.
    fn put_what_fits(&mut self, line: &[u8]) -> bool {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(written) = put_pieces(&mut self.output, &rest) else { return false };
        rest.drain(..written);
        if !rest.is_empty() {
            return false;
        }
        match put_pieces(&mut self.output, line) {
            Ok(written) if written > 0 => {
                rest.extend_from_slice(&line[written..]);
                true
            }
            _ => line.is_empty(),
        }
    }
}

/// Writes for as long as there is room, and says how much.
fn put_pieces(output: &mut (impl Write + AsFd), bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    for piece in bytes.chunks(PIECE) {
        if !has_room(output) {
            break;
        }
        output.write_all(piece)?;
        written += piece.len();
    }
    Ok(written)
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

/// Whether a piece can be written at once.
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
        static REST: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let (mut reader, writer) = io::pipe().unwrap();
        assert!(may_block(&writer));
        let mut line = Line { output: writer, may_block: true, lost: &LOST, rest: &REST };
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
    fn a_line_longer_than_a_pipe_takes_at_once_is_not_waited_for_and_stays_whole() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        static REST: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let (mut reader, writer) = io::pipe().unwrap();
        let mut line = Line { output: writer, may_block: true, lost: &LOST, rest: &REST };
        let text = |n: usize| format!("{n:06}{}\n", "x".repeat(20_000));
        // Nobody reads: were one of them waited for, this would not end.
        let begun: Vec<_> = (0..5).filter(|n| line.put(text(*n).as_bytes())).collect();
        assert!(!REST.lock().unwrap().is_empty(), "the last one is half in the pipe");
        assert_eq!(LOST.load(Ordering::Acquire), 5 - begun.len() as u64);
        assert!((3..=4).contains(&begun.len()), "a pipe holds 64 KiB: {begun:?}");
        // Somebody reads again: what was begun ends before the next one begins.
        let mut all = vec![0; 40_000];
        reader.read_exact(&mut all).unwrap();
        assert!(line.put(text(9).as_bytes()));
        let reading = std::thread::spawn(move || {
            reader.read_to_end(&mut all).unwrap();
            String::from_utf8(all).unwrap()
        });
        while !REST.lock().unwrap().is_empty() {
            line.put(b"");
            std::thread::yield_now();
        }
        drop(line);
        let expected: String = begun.into_iter().chain([9]).map(text).collect();
        let all = reading.join().unwrap();
        assert!(all == expected, "{} bytes, not {}", all.len(), expected.len());
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        static REST: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut line = Line { output: full, may_block: false, lost: &LOST, rest: &REST };
        line.write_all(b"a line\n").unwrap();
        assert_eq!(LOST.load(Ordering::Acquire), 1);
        assert!(!may_block(&tempfile::tempfile().unwrap()));
    }
}
