//! The one place that starts processes.

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context, bail};

/// A command to run, with what to say when it fails.
#[derive(Debug)]
pub struct Cmd {
    inner: Command,
}

impl Cmd {
    /// A command. Standard input is empty.
    #[expect(clippy::disallowed_methods, reason = "the room that starts processes")]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut inner = Command::new(program);
        inner.stdin(Stdio::null());
        Self { inner }
    }

    /// `cargo`, the one that runs this program.
    pub fn cargo() -> Self {
        let mut command = Self::new("cargo").dir(crate::paths::root());
        // Set by the `cargo run` around this program. They would change what build scripts see and build everything twice.
        for name in crate::paths::variable_names() {
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_BIN_NAME" {
                command.inner.env_remove(name);
            }
        }
        command
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.inner.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.inner.args(arguments);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.inner.env_remove(name);
        self
    }

    /// Working directory.
    #[must_use]
    pub fn dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.inner.current_dir(directory);
        self
    }

    /// The command as one would type it.
    pub fn shown(&self) -> String {
        let words: Vec<OsString> =
            std::iter::once(self.inner.get_program()).chain(self.inner.get_args()).map(OsStr::to_owned).collect();
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    /// Runs it with this program's own output.
    ///
    /// # Errors
    /// When it cannot be started or ends with another status than 0.
    pub fn run(mut self) -> anyhow::Result<()> {
        let status = self.inner.status().with_context(|| format!("cannot start `{}`", self.shown()))?;
        self.check(status)
    }

    /// Runs it quietly; its output is shown only in the error.
    ///
    /// # Errors
    /// As [`Cmd::run`].
    pub fn run_quietly(self) -> anyhow::Result<()> {
        let shown = self.shown();
        let output = self.output()?;
        if !output.status.success() {
            bail!("`{shown}` failed ({}):\n{}", output.status, both(&output));
        }
        Ok(())
    }

    /// Runs it and returns what it wrote, whatever its status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(mut self) -> anyhow::Result<Output> {
        self.inner.output().with_context(|| format!("cannot start `{}`", self.shown()))
    }

    /// Its standard output as text.
    ///
    /// # Errors
    /// As [`Cmd::run`].
    pub fn text(self) -> anyhow::Result<String> {
        let shown = self.shown();
        let output = self.output()?;
        if !output.status.success() {
            bail!("`{shown}` failed ({}):\n{}", output.status, both(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether it can be started and ends with status 0; its output is dropped.
    pub fn succeeds(mut self) -> bool {
        self.inner.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Starts it with piped standard output, leaving standard error alone.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn piped(mut self) -> anyhow::Result<Child> {
        self.inner.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{}`", self.shown()))
    }

    /// Starts it with standard input and output piped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn dialogue(mut self) -> anyhow::Result<Child> {
        self.inner
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.shown()))
    }

    /// Starts it with standard input and output piped, its errors going to `log`.
    ///
    /// # Errors
    /// When it cannot be started or the log cannot be written.
    pub fn dialogue_logged(mut self, log: &Path) -> anyhow::Result<Child> {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        self.inner.stderr(file);
        self.dialogue()
    }

    /// Starts it in the background, both outputs going to `log`.
    ///
    /// # Errors
    /// When it cannot be started or the log cannot be written.
    pub fn background(mut self, log: &Path) -> anyhow::Result<Background> {
        let shown = self.shown();
        let mut file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let _ = writeln!(file, "$ {shown}");
        let child = self
            .inner
            .stdout(file.try_clone().context("cannot duplicate the log's handle")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        Ok(Background { child, shown })
    }

    fn check(&self, status: ExitStatus) -> anyhow::Result<()> {
        if !status.success() {
            bail!("`{}` failed ({status})", self.shown());
        }
        Ok(())
    }
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A process in the background: told to stop (SIGTERM) and waited for when dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    shown: String,
}

impl Background {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// When the system will not say.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for `{}`", self.shown))
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let _ = Cmd::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).output();
    }

    /// Waits for the end, at most `limit`; kills it then.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn wait(&mut self, limit: std::time::Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = crate::clock::wait_for(limit, || self.child.try_wait().map_err(Into::into))? {
            return Ok(status);
        }
        self.child.kill().context("cannot kill")?;
        self.child.wait().context("cannot wait")?;
        bail!("`{}` had not ended after {} s and was killed", self.shown, limit.as_secs())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("TERM");
            let _ = self.wait(std::time::Duration::from_secs(20));
        }
    }
}
