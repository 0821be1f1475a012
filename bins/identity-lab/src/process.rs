//! The one room of this crate in which processes are started.
//!
//! A lab must not outlive whoever started it, even when that one is killed with SIGKILL. Children are therefore started through
//! `setpriv --pdeathsig KILL` (util-linux): the kernel ends them when the *thread* that spawned them is gone. Threads of an
//! async runtime come and go, so a [`Keeper`] owns one thread that does nothing but spawn and live as long as it is needed.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How often a child is looked at while its end is awaited.
const LOOK: Duration = Duration::from_millis(20);

/// What can go wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started.
    #[error("cannot start `{program}`: {source}; is it installed and executable?")]
    Spawn {
        /// The program.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A helper program ended with a failure.
    #[error("`{line}` failed ({status}): {stderr}")]
    Failed {
        /// The command line.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The log file of a child cannot be written.
    #[error("cannot open log file {path}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The keeper's thread is gone.
    #[error("the thread that starts processes has ended")]
    KeeperGone,
}

/// A command line for `program`, nothing decided yet.
#[expect(clippy::disallowed_methods, reason = "the room that starts processes")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// Runs a short helper program to its end and returns what it printed; a failure carries its stderr.
///
/// # Errors
/// The program cannot be started, or ends with a status other than 0.
pub fn run(program: &str, arguments: &[&str]) -> Result<Output, Error> {
    let output = command(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Spawn { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Failed {
        line: format!("{program} {}", arguments.join(" ")),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

type Job = (Command, mpsc::SyncSender<io::Result<Child>>);

/// A thread that starts children which die with this process (see the module's description).
#[derive(Debug)]
pub struct Keeper {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn new() -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            while let Ok((mut command, answer)) = inbox.recv() {
                // Nobody waits for the answer any more: the child must not stay behind unowned.
                if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Starts `program` so that it dies with this process; output goes (appended) to `log`.
    ///
    /// # Errors
    /// The log cannot be opened, or `setpriv` cannot be started. A missing `program` shows in the log and as an early exit.
    pub fn spawn(
        &self,
        name: &str,
        program: &Path,
        arguments: &[String],
        environment: &[(String, String)],
        log: &Path,
    ) -> Result<Process, Error> {
        let failed = |source| Error::Log { path: log.to_owned(), source };
        let out: File = OpenOptions::new().create(true).append(true).open(log).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        let mut line = command("setpriv");
        line.args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        let (answer, reply) = mpsc::sync_channel(1);
        let jobs = self.jobs.as_ref().ok_or(Error::KeeperGone)?;
        jobs.send((line, answer)).map_err(|_| Error::KeeperGone)?;
        let child = reply
            .recv()
            .map_err(|_| Error::KeeperGone)?
            .map_err(|source| Error::Spawn { program: "setpriv".to_owned(), source })?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned() })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running child; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// What it is called in messages and tables.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The last lines of its log, for an error message.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Sends a signal (SIGSTOP and SIGCONT make useful faults).
    pub fn signal(&self, signal: Signal) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// Asks it to end, and insists after `grace`.
    pub async fn stop(&mut self, grace: Duration) {
        if self.exited().is_some() {
            return;
        }
        self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT);
        let ended = tokio::time::timeout(grace, async {
            while self.exited().is_none() {
                tokio::time::sleep(LOOK).await;
            }
        });
        if ended.await.is_err() {
            self.kill();
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.kill();
        }
    }
}

/// When the process `id` was started, in clock ticks since boot (field 22 of `/proc/ID/stat`), and none if there is no such
/// process or it is a zombie. Together with the id it names a process for good: ids are reused, the pair is not.
pub fn started(id: u32) -> Option<u64> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may itself contain spaces and parentheses.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_cannot_confuse_the_start_time() {
        let line = |state: &str| format!("7 (a) b (c) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 0");
        assert_eq!(parse_stat(&line("S")), Some(4242));
        assert_eq!(parse_stat(&line("Z")), None, "a zombie runs no more");
        assert_eq!(parse_stat("nonsense"), None);
        assert!(started(std::process::id()).is_some());
    }

    #[tokio::test]
    async fn a_child_is_stopped_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new().unwrap();
        let mut child =
            keeper.spawn("sleeper", Path::new("sleep"), &["1000".to_owned()], &[], &dir.path().join("log")).unwrap();
        let id = child.id();
        assert!(started(id).is_some());
        child.stop(Duration::from_secs(5)).await;
        assert_eq!(started(id), None);
    }
}
