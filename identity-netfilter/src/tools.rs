//! The one room that starts processes: where programs are looked for, how they are run, how long they may take, and what
//! their failures mean.
//!
//! The crate `iptables` is not used: it starts programs itself, found through the environment, without a time limit, and
//! waits for the xtables lock for ever.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::Error;

/// More than any listing of a node's rules; what is longer is an error rather than a reason to run out of memory.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// How `nft`, `iptables…` and `conntrack` are found and run.
///
/// They get an empty environment but for `PATH` and `LC_ALL=C`. Set what else they need through the prefix: `["env", "NAME=value"]`.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Put before every command, e.g. `["ip", "netns", "exec", "name"]` or `["nsenter", "-t", "1", "-n", "--"]`.
    pub prefix: Vec<OsString>,
    /// Where programs are looked for, in this order.
    pub path: Vec<PathBuf>,
    /// How long one command may take.
    pub timeout: Duration,
    /// How long a command waits for the xtables lock; whole seconds, at least one, and less than `timeout`.
    pub lock_wait: Duration,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            prefix: Vec::new(),
            path: ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"]
                .map(PathBuf::from)
                .to_vec(),
            timeout: Duration::from_secs(10),
            lock_wait: Duration::from_secs(5),
        }
    }
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) command: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Tools {
    /// The program's file, if there is one.
    pub(crate) fn find(&self, tool: &str) -> Option<PathBuf> {
        self.path.iter().map(|directory| directory.join(tool)).find(|file| is_program(file))
    }

    /// The program's file, or an error that says what to install.
    pub(crate) fn require(&self, tool: &str, package: &'static str) -> Result<PathBuf, Error> {
        self.find(tool).ok_or_else(|| self.missing(tool, package))
    }

    pub(crate) fn missing(&self, tool: &str, package: &'static str) -> Error {
        Error::MissingTool { tool: tool.to_owned(), package, searched: self.search_path() }
    }

    /// Seconds for the option `-w` of the xtables programs.
    pub(crate) fn lock_seconds(&self) -> u64 {
        self.lock_wait.as_secs().min(self.timeout.as_secs().saturating_sub(1)).max(1)
    }

    fn search_path(&self) -> String {
        self.path.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// Runs a program to its end; a failure of the program is not an error here.
    #[expect(clippy::disallowed_methods, reason = "the one place of this crate that starts a process")]
    pub(crate) async fn run(&self, program: &Path, arguments: &[&str], input: Option<&str>) -> Result<Output, Error> {
        let mut words = self.prefix.iter().cloned();
        let (first, rest) = match words.next() {
            Some(first) => (self.prefix_program(first), words.chain([program.as_os_str().to_owned()]).collect()),
            None => (program.as_os_str().to_owned(), Vec::new()),
        };
        // For messages: without the prefix and the directory, as a person would type it.
        let command = std::iter::once(program.file_name().unwrap_or_default().to_string_lossy().into_owned())
            .chain(arguments.iter().map(|&word| word.to_owned()))
            .collect::<Vec<_>>()
            .join(" ");
        let mut child = tokio::process::Command::new(first)
            .args(rest)
            .args(arguments)
            .env_clear()
            .env("PATH", self.search_path())
            .env("LC_ALL", "C")
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Start { command: command.clone(), source })?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let work = async {
            let write = async {
                if let (Some(mut stdin), Some(input)) = (stdin, input) {
                    // A program that ends early closes its input; its exit code says why.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
            Ok::<_, std::io::Error>((child.wait().await?, stdout?, stderr?))
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(Ok((status, stdout, stderr))) => {
                if stdout.len() as u64 > OUTPUT_LIMIT {
                    let reason = format!("more than {} MiB", OUTPUT_LIMIT >> 20);
                    return Err(Error::Unreadable { command, reason });
                }
                Ok(Output {
                    command,
                    code: status.code(),
                    stdout: String::from_utf8_lossy(&stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&stderr).into_owned(),
                })
            }
            Ok(Err(source)) => Err(Error::Start { command, source }),
            Err(_) => Err(Error::TimedOut { command, after: self.timeout }),
        }
    }

    /// Runs a program that must succeed; returns its output.
    pub(crate) async fn must(&self, program: &Path, arguments: &[&str], input: Option<&str>) -> Result<Output, Error> {
        let output = self.run(program, arguments, input).await?;
        if output.code == Some(0) { Ok(output) } else { Err(self.failure(output)) }
    }

    /// The error for a program that ended with another code than 0.
    pub(crate) fn failure(&self, output: Output) -> Error {
        let Output { command, code, stderr, .. } = output;
        let message = shorten(&stderr);
        if stderr.contains("holding the xtables lock") {
            Error::LockBusy { command, waited: Duration::from_secs(self.lock_seconds()) }
        } else if ["Operation not permitted", "Permission denied", "you must be root"]
            .iter()
            .any(|refusal| stderr.contains(refusal))
        {
            Error::Permission { command, message }
        } else {
            Error::Failed { command, code, message }
        }
    }

    /// A prefix such as `ip` is no tool of ours: it is found in the usual places, wherever our tools are.
    fn prefix_program(&self, name: OsString) -> OsString {
        if name.as_encoded_bytes().contains(&b'/') {
            return name;
        }
        let usual = Tools::default().path;
        self.path
            .iter()
            .chain(&usual)
            .map(|directory| directory.join(&name))
            .find(|file| is_program(file))
            .map_or(name, PathBuf::into_os_string)
    }
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_LIMIT + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The first lines of what a program complained about, on one line, at most 300 characters.
fn shorten(text: &str) -> String {
    let line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" / ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.is_empty() => "it did not say why".to_owned(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(code: i32, stderr: &str) -> Output {
        Output {
            command: "iptables-legacy -w 5 -S".to_owned(),
            code: Some(code),
            stdout: String::new(),
            stderr: stderr.to_owned(),
        }
    }

    // What the programs say: nftables 1.0.6, iptables 1.8.9, conntrack 1.4.7.
    #[test]
    fn failures_say_what_to_do() {
        let tools = Tools::default();
        for (code, stderr, says) in [
            (
                4,
                "Can't lock /run/xtables.lock: Resource temporarily unavailable\nAnother app is currently holding the xtables lock. Stopped waiting after 5s.\n",
                "another program held the lock /run/xtables.lock for 5 s",
            ),
            (4, "Fatal: can't open lock file /run/xtables.lock: Permission denied\n", "NET_ADMIN"),
            (
                4,
                "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n",
                "NET_ADMIN",
            ),
            (
                1,
                "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed: Operation not permitted\n",
                "NET_ADMIN",
            ),
            (
                1,
                "conntrack v1.4.7 (conntrack-tools): Operation failed: sorry, you must be root or get CAP_NET_ADMIN capability to do this\n",
                "NET_ADMIN",
            ),
            (2, "iptables: unknown option\n\nTry it\n", "(exit code 2): iptables: unknown option / Try it"),
            (1, "", "it did not say why"),
        ] {
            let error = tools.failure(output(code, stderr)).to_string();
            assert!(error.contains(says), "{stderr}: {error}");
            assert!(error.contains("iptables-legacy -w 5 -S"), "{error}");
        }
    }

    #[test]
    fn the_lock_is_given_up_before_the_command_is_killed() {
        for (timeout, lock_wait, seconds) in [(10, 5, 5), (3, 5, 2), (1, 5, 1), (10, 0, 1)] {
            let tools = Tools {
                timeout: Duration::from_secs(timeout),
                lock_wait: Duration::from_secs(lock_wait),
                ..Tools::default()
            };
            assert_eq!(tools.lock_seconds(), seconds);
        }
    }

    #[test]
    fn a_missing_program_names_its_package_and_where_it_was_looked_for() {
        let empty = tempfile::tempdir().unwrap();
        let tools = Tools { path: vec![empty.path().to_owned()], ..Tools::default() };
        let error = tools.require("nft", "nftables").unwrap_err().to_string();
        assert!(error.contains("apt-get install nftables"), "{error}");
        assert!(error.contains(&empty.path().display().to_string()), "{error}");
    }

    #[tokio::test]
    async fn programs_get_their_input_the_prefix_and_an_empty_environment() {
        let tools = Tools { prefix: vec!["env".into(), "ADDED=1".into()], ..Tools::default() };
        let output = tools.must(&tools.find("cat").unwrap(), &["-"], Some("through\n")).await.unwrap();
        assert_eq!(output.stdout, "through\n");
        assert_eq!(output.command, "cat -");
        let output = tools.must(&tools.find("env").unwrap(), &[], None).await.unwrap();
        let mut names: Vec<_> = output.stdout.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["ADDED", "LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed() {
        let tools = Tools { timeout: Duration::from_millis(50), ..Tools::default() };
        let error = tools.run(&tools.find("sleep").unwrap(), &["600"], None).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    }
}
