//! The node's own projected token.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::fcntl::OFlag;
use secrecy::SecretString;
use tokio::{sync::Semaphore, time::timeout};
use zeroize::Zeroize as _;

use super::{Assertion, AssertionError, assertion::MAX_TOKEN};
use crate::clock::Clock;

/// The longest that the file is waited for.
const LIMIT: Duration = Duration::from_secs(5);
/// The most threads that read it at a time.
const READINGS: usize = 2;

/// A projected service account's token in a file (a `serviceAccountToken` volume), which the kubelet renews.
///
/// It is read whenever it is needed, once for each token that is asked for upstream: so a renewed one is seen at once, and
/// none is kept longer than it is used.
#[derive(Clone)]
pub struct TokenFile {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    readings: Arc<Semaphore>,
}

impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TokenFile {
    /// The token at `path`. Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>, clock: impl Clock) -> Self {
        Self { path: path.into(), clock: Arc::new(clock), readings: Arc::new(Semaphore::new(READINGS)) }
    }

    /// The token as it is now, when it is for `audience` and not over. Answers within 5 seconds.
    pub async fn read(&self, audience: &str) -> Result<Assertion, AssertionError> {
        let path = self.path.display().to_string();
        let (file, readings) = (self.path.clone(), Arc::clone(&self.readings));
        // A file system may hang: then so many threads do, and no more.
        let read = timeout(LIMIT, async {
            let turn = readings.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let read = read(&file);
                drop(turn);
                read
            })
            .await
        });
        let read = read.await;
        let unreadable = |reason: String| AssertionError::Unreadable { path: path.clone(), reason };
        let token = match read {
            Ok(Ok(Ok(token))) => token,
            Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::NotFound => {
                return Err(AssertionError::NoFile { path, audience: audience.to_owned() });
            }
            Ok(Ok(Err(error))) => return Err(unreadable(error.to_string())),
            Ok(Err(_)) => return Err(unreadable("reading it failed".to_owned())),
            Err(_) => return Err(unreadable(format!("no answer within {} s", LIMIT.as_secs()))),
        };
        let origin = format!("the token at {path}");
        let assertion = Assertion::read(token, &origin)?;
        assertion.check(&origin, audience, self.clock.now())?;
        Ok(assertion)
    }
}

/// At most one byte more than a token may have.
fn read(path: &Path) -> io::Result<SecretString> {
    // A FIFO would be waited for until somebody writes to it, by a thread that nobody can end.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    // Of this capacity from the start, so that no copy is left behind by growing.
    let mut bytes = Vec::with_capacity(MAX_TOKEN + 2);
    file.take(MAX_TOKEN as u64 + 1).read_to_end(&mut bytes)?;
    let text = str::from_utf8(&bytes).map(|text| SecretString::from(text.trim()));
    bytes.zeroize();
    text.map_err(|_| io::Error::other("it is not text"))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use secrecy::ExposeSecret as _;
    use serde_json::json;
    use std::{fs, os::unix::fs::symlink};

    use super::{super::assertion::tests::token, *};

    const AUDIENCE: &str = "api://AzureADTokenExchange";
    const NOW: i64 = 1_800_000_000;

    fn file(path: impl Into<PathBuf>) -> TokenFile {
        TokenFile::new(path, || Timestamp::from_second(NOW).unwrap())
    }

    fn valid(subject: &str, exp: i64) -> String {
        token(&json!({"iss": "https://oidc.example", "sub": subject, "aud": [AUDIENCE], "exp": exp}))
    }

    #[tokio::test]
    async fn a_renewed_token_is_seen_at_once() {
        // As a kubelet does it: a directory for each version, and a link that moves.
        let dir = tempfile::tempdir().unwrap();
        let version = |name: &str, subject: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("token"), format!("{}\n", valid(subject, NOW + 3600))).unwrap();
            let new = dir.path().join("..data_tmp");
            symlink(name, &new).unwrap();
            fs::rename(new, dir.path().join("..data")).unwrap();
        };
        version("..1", "one");
        symlink("..data/token", dir.path().join("token")).unwrap();
        let file = file(dir.path().join("token"));
        let first = file.read(AUDIENCE).await.unwrap();
        assert_eq!((first.subject(), first.token().expose_secret()), ("one", &*valid("one", NOW + 3600)));
        version("..2", "two");
        assert_eq!(file.read(AUDIENCE).await.unwrap().subject(), "two");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_hangs_takes_no_more_threads_than_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, valid("x", NOW + 3600)).unwrap();
        let file = file(&path);
        let hanging = Arc::clone(&file.readings).acquire_many_owned(2).await.unwrap();
        let error = file.read(AUDIENCE).await.unwrap_err().to_string();
        assert!(error.ends_with("cannot be read: no answer within 5 s"), "{error}");
        drop(hanging);
        for _ in 0..5 {
            file.read(AUDIENCE).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let shown = |error: AssertionError| error.to_string().replace(&dir.path().display().to_string(), "DIR");
        let mut said = vec![shown(file(&path).read(AUDIENCE).await.unwrap_err())];
        for content in [
            b"".to_vec(),
            b"no token".to_vec(),
            vec![0xff; 10],
            vec![b'a'; 1 << 20],
            valid("x", NOW - 301).into_bytes(),
            token(&json!({"aud": ["https://kubernetes.default.svc"], "exp": NOW + 60})).into_bytes(),
        ] {
            fs::write(&path, content).unwrap();
            said.push(shown(file(&path).read(AUDIENCE).await.unwrap_err()));
        }
        said.push(shown(file(dir.path()).read(AUDIENCE).await.unwrap_err()));
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        said.push(shown(file(&path).read(AUDIENCE).await.unwrap_err()));
        // Lets a thread go that waits for somebody to write, so that this fails rather than hangs.
        drop(OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path));
        fs::remove_file(&path).unwrap();
        // Has no end.
        symlink("/dev/zero", &path).unwrap();
        said.push(shown(file(&path).read(AUDIENCE).await.unwrap_err()));
        fs::remove_file(&path).unwrap();
        insta::assert_snapshot!(said.join("\n"));
        // A minute slow is not over.
        fs::write(&path, valid("x", NOW - 60)).unwrap();
        file(&path).read(AUDIENCE).await.unwrap();
    }
}
