//! An application in a pod that holds an Azure client and is asked to get tokens: the programs of `tools/sdk`.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin},
    sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{clock, jwt, run::Cmd};

/// Which credential the client is to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A managed identity.
    Managed,
    /// `DefaultAzureCredential`.
    Default,
}

/// How the identity is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Id {
    /// By client id.
    ClientId(String),
    /// By Azure resource id.
    ResourceId(String),
    /// By object id.
    ObjectId(String),
}

/// A question to a client.
#[derive(Clone, Debug, Serialize)]
pub struct Question {
    /// The credential.
    pub kind: Kind,
    /// What the token is to be for.
    pub resource: String,
    /// The identity, if it is named.
    #[serde(flatten)]
    pub id: Option<Id>,
}

/// What a client gave its application.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SdkAnswer {
    /// The token.
    pub token: Option<String>,
    /// Expiry as the client understood it, seconds since 1970.
    pub expires_on: Option<i64>,
    /// The client's error.
    pub error: Option<String>,
    /// Why the client cannot be asked so at all.
    pub unsupported: Option<String>,
    /// Milliseconds from the question to the answer.
    pub ms: u64,
}

impl SdkAnswer {
    /// The claims of the token.
    ///
    /// # Errors
    /// The client's error, when there is no token.
    pub fn claims(&self) -> anyhow::Result<jwt::Claims> {
        match (&self.token, &self.error) {
            (Some(token), None) => jwt::claims(token),
            (_, error) => bail!("the SDK got no token: {}", error.as_deref().unwrap_or("it does not say why")),
        }
    }
}

#[derive(Deserialize)]
struct Loaded {
    version: String,
}

/// A process; the same from the first question to the last.
#[derive(Debug)]
pub struct Application {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
    version: Option<String>,
}

impl Application {
    /// Starts it. What it writes to standard error goes to `errors`, or where this program's goes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: Cmd, errors: Option<&Path>) -> anyhow::Result<Self> {
        let mut child = match errors {
            Some(log) => command.dialogue_logged(log)?,
            None => command.dialogue()?,
        };
        let input = child.stdin.take().context("no way to the application")?;
        let lines = BufReader::new(child.stdout.take().context("no way from the application")?).lines();
        let (sender, output) = mpsc::channel();
        // Ends with the process, or when nobody listens any more.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, input: Some(input), output, version: None })
    }

    /// Waits until the client is loaded; its version.
    ///
    /// # Errors
    /// When it is not loaded within `limit`, or the process has ended.
    pub fn version(&mut self, limit: Duration) -> anyhow::Result<&str> {
        if self.version.is_none() {
            let line = self.line(limit)?;
            let loaded: Loaded =
                serde_json::from_str(&line).with_context(|| format!("not what the program prints first: {line}"))?;
            self.version = Some(loaded.version);
        }
        Ok(self.version.as_deref().unwrap_or_default())
    }

    /// Asks, without waiting for the answer.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn send(&mut self, question: &Question) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("the application was ended")?;
        let line = serde_json::to_string(question).context("a question that is no JSON")?;
        writeln!(input, "{line}").and_then(|()| input.flush()).context("the application with the SDK has ended")
    }

    /// The answer.
    ///
    /// # Errors
    /// When there is none within `limit`, or the process has ended.
    pub fn receive(&mut self, limit: Duration) -> anyhow::Result<SdkAnswer> {
        self.version(limit)?;
        parse(&self.line(limit)?)
    }

    /// The answer, if it is there already.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn received(&mut self) -> anyhow::Result<Option<SdkAnswer>> {
        match self.output.try_recv() {
            Ok(line) => parse(&line).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("the application with the SDK ended ({})", self.child.wait()?),
        }
    }

    fn line(&mut self, limit: Duration) -> anyhow::Result<String> {
        match self.output.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("no answer of the application with the SDK within {} s", limit.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the application with the SDK ended ({})", self.child.wait()?)
            }
        }
    }
}

fn parse(line: &str) -> anyhow::Result<SdkAnswer> {
    serde_json::from_str(line).with_context(|| format!("not what the program prints: {line}"))
}

impl Drop for Application {
    fn drop(&mut self) {
        self.input = None; // end of input: the program ends
        let ended = clock::wait_for(Duration::from_secs(5), || Ok(self.child.try_wait()?));
        if !matches!(ended, Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_have_the_names_that_the_programs_read() {
        let mut question = Question { kind: Kind::Managed, resource: "r".into(), id: None };
        assert_eq!(serde_json::to_string(&question).unwrap(), r#"{"kind":"managed","resource":"r"}"#);
        for (id, name) in [
            (Id::ClientId("x".into()), "client_id"),
            (Id::ResourceId("x".into()), "resource_id"),
            (Id::ObjectId("x".into()), "object_id"),
        ] {
            question.id = Some(id);
            let json = serde_json::to_value(&question).unwrap();
            assert_eq!(json[name], "x", "{json}");
        }
    }

    #[test]
    fn a_conversation_and_its_end() {
        let script = r#"echo '{"version":"1"}'; read line; echo '{"error":"no","ms":7}'; read line; exit 3"#;
        let mut application = Application::start(Cmd::new("sh").args(["-c", script]), None).unwrap();
        let limit = Duration::from_secs(10);
        assert_eq!(application.version(limit).unwrap(), "1");
        assert!(application.received().unwrap().is_none());
        let question = Question { kind: Kind::Default, resource: String::new(), id: None };
        application.send(&question).unwrap();
        let answer = application.receive(limit).unwrap();
        assert_eq!((answer.error.as_deref(), answer.ms), (Some("no"), 7));
        application.send(&question).unwrap();
        assert!(application.receive(limit).unwrap_err().to_string().contains("exit status: 3"));
    }
}
