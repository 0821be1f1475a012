//! One credential: what its machine wants done.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use identity_core::lookup::{CredentialSource, Identity};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Command, Context, Place, Shared, Tried, milliseconds};
use crate::{
    credentials::{
        notice::Notice,
        rotation::{Effect, Freshness, Input, Now, Outlook, Reading, Rotation, Saying, Version},
        source::{Known, Loaded, Read},
    },
    tokens::TokenError,
};

/// How often the wall clock is looked at, which may have been set.
const LOOK: Duration = Duration::from_mins(15);
/// How long a credential that its identity has no longer is kept for pods whose assignment has yet to follow.
const PARTING: Duration = Duration::from_mins(1);

pub(super) struct Task {
    context: Arc<Context>,
    identity: Arc<Identity>,
    shared: Arc<Shared>,
    machine: Rotation,
    known: Known,
    waiters: Vec<(Option<Version>, oneshot::Sender<Answer>)>,
    follow: Option<watch::Receiver<u64>>,
    reading: Option<Working<Read>>,
    trying: Option<Trying>,
    /// What a token was got for last.
    resource: Option<Box<str>>,
    timer: Option<Duration>,
    /// The identity was seen where objects are looked up.
    seen: bool,
    /// It has another credential there, or is gone: nothing is said of this one, and it ends soon.
    former: bool,
}

/// Work on another task; given up when it is dropped.
type Working<T> = AbortOnDropHandle<T>;

fn on_a_task<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Working<T> {
    AbortOnDropHandle::new(tokio::spawn(work))
}

/// A credential that is tried.
struct Trying {
    version: Version,
    /// What for, when not for what every application may ask for.
    resource: Option<Box<str>>,
    work: Working<Tried>,
}

impl Task {
    pub(super) fn new(context: Arc<Context>, identity: Arc<Identity>, shared: Arc<Shared>) -> Self {
        let follow = following(&context, &identity);
        let freshness = match identity.credential {
            CredentialSource::KeyVault(_) => Freshness::Polled(context.rotation.vault_poll),
            _ if follow.is_some() => Freshness::Followed,
            _ => Freshness::OnDemand(context.age),
        };
        let machine = Rotation::new(context.rotation.clone(), freshness, rand::random());
        Self {
            context,
            identity,
            shared,
            machine,
            known: Known::default(),
            waiters: Vec::new(),
            follow,
            reading: None,
            trying: None,
            resource: None,
            timer: None,
            seen: false,
            former: false,
        }
    }

    /// Until nobody wants it any more.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let look = self.now().mono + if self.former { PARTING } else { LOOK };
            let wake = self.context.base + self.timer.map_or(look, |at| at.min(look));
            let sleep = pin!(tokio::time::sleep_until(wake));
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                still = changed(self.follow.as_mut()) => {
                    if still {
                        self.handle(Input::Changed);
                    } else {
                        self.follow = None;
                        self.handle(Input::Freshness(Freshness::OnDemand(self.context.age)));
                    }
                }
                read = read(self.reading.as_mut()) => {
                    self.reading = None;
                    self.was_read(read);
                }
                tried = tried(self.trying.as_mut()) => self.was_tried(tried),
                () = sleep => {
                    self.timer = None;
                    self.handle(Input::Timer);
                    if self.is_idle() {
                        return;
                    }
                }
            }
        }
    }

    fn now(&self) -> Now {
        Now { wall: self.context.clock.now(), mono: self.context.base.elapsed() }
    }

    /// Looks whether the identity has this credential still. Its pods' assignments may be ahead of that, or behind.
    /// Says whether it has it again.
    fn look(&mut self) -> bool {
        let object = &self.identity.object;
        let Some(identities) = &self.context.reader.sources().identities else { return false };
        let found = identities.get(&object.namespace, &object.name);
        self.seen |= found.is_some();
        let gone = found.is_none();
        let former = found.map_or(self.seen, |found| Place::of(&found) != Place::of(&self.identity));
        if former == std::mem::replace(&mut self.former, former) {
            return false;
        }
        // A new version of what is used no longer is nobody's business.
        self.follow = if former { None } else { following(&self.context, &self.identity) };
        let expires = self.shared.current.load().as_ref().and_then(|loaded| loaded.expires).filter(|_| !gone);
        if gone || !former {
            // What the identity has instead tells its own.
            self.context.metrics.credential_expiry(&self.identity.object, expires);
        }
        !former
    }

    fn is_idle(&self) -> bool {
        let wanted = Duration::from_millis(self.shared.wanted.load(Ordering::Relaxed));
        let idle = if self.former { PARTING } else { self.context.rotation.idle };
        self.waiters.is_empty() && wanted + idle <= self.now().mono
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Want { identity, refused, reply } => {
                self.identity = identity;
                self.shared.wanted.fetch_max(milliseconds(self.now().mono), Ordering::Relaxed);
                self.waiters.push((refused, reply));
                self.handle(Input::Wanted { refused });
            }
            Command::Worked { version, resource } => {
                self.resource = Some(resource);
                self.handle(Input::Worked { version });
            }
        }
    }

    fn was_read(&mut self, read: Option<Read>) {
        let read = read.unwrap_or_else(|| {
            let message = "reading the credential failed inside the broker; its log says more".to_owned();
            Reading::Unclear(TokenError::Unavailable { message, retry_after: Duration::from_secs(2) }).into()
        });
        self.known.wrong = read.wrong;
        if let Some(loaded) = read.loaded {
            self.known.loaded.retain(|known| known.version != loaded.version);
            self.known.loaded.push(loaded);
        }
        self.handle(Input::Read(read.reading));
        // Whoever could not follow it before may be able to now.
        if self.follow.is_none() && !self.former && !matches!(self.identity.credential, CredentialSource::KeyVault(_)) {
            self.follow = following(&self.context, &self.identity);
            if self.follow.is_some() {
                self.handle(Input::Freshness(Freshness::Followed));
            }
        }
    }

    fn was_tried(&mut self, tried: Tried) {
        let Some(Trying { version, resource, .. }) = self.trying.take() else { return };
        if matches!(tried, Tried::Otherwise(_)) && resource == self.resource {
            // It may be the resource that is not there any more: the next try is for one that is.
            self.resource = None;
        }
        self.handle(Input::Tried { version, outcome: tried.outcome() });
    }

    fn handle(&mut self, input: Input) {
        let again = self.look();
        let now = self.now();
        self.machine.wanted_at(Duration::from_millis(self.shared.wanted.load(Ordering::Relaxed)));
        let mut effects = Vec::new();
        if again {
            // What has changed meanwhile was not followed.
            self.machine.handle(now, Input::Changed, &mut effects);
        }
        self.machine.handle(now, input, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
        self.publish();
        // Last, so that whoever is answered finds everything in its place.
        let waiters = std::mem::take(&mut self.waiters);
        for (refused, reply) in waiters {
            match self.machine.outlook(now, refused) {
                Outlook::Wait if reply.is_closed() => {}
                Outlook::Wait => self.waiters.push((refused, reply)),
                Outlook::Serve(version) => {
                    if let Some(loaded) = self.find(version) {
                        let _ = reply.send(Ok(loaded));
                    }
                }
                Outlook::None(error) => {
                    let _ = reply.send(Err(error));
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            // Nobody waits for what is gone: it is neither read nor tried on its own.
            Effect::Read if self.former && self.waiters.is_empty() => {
                let message = "its identity has it no longer".to_owned();
                let error = TokenError::Unavailable { message, retry_after: PARTING };
                self.reading = Some(on_a_task(async { Reading::Unclear(error).into() }));
            }
            Effect::Try { version } if self.former && self.waiters.is_empty() => {
                let work = on_a_task(async { Tried::Unclear("its identity has it no longer".to_owned()) });
                self.trying = Some(Trying { version, resource: None, work });
            }
            Effect::Read => {
                let (context, identity) = (Arc::clone(&self.context), Arc::clone(&self.identity));
                let known = self.known.clone();
                self.reading = Some(on_a_task(async move { context.reader.read(&identity, known).await }));
            }
            Effect::Try { version } => {
                let Some(loaded) = self.find(version) else { return };
                let (context, identity) = (Arc::clone(&self.context), Arc::clone(&self.identity));
                let (resource, asked) = (self.resource.clone(), self.resource.clone());
                let work =
                    on_a_task(
                        async move { context.tries.try_it(&identity, &loaded.credential, asked.as_deref()).await },
                    );
                self.trying = Some(Trying { version, resource, work });
            }
            Effect::SetTimer { at } => self.timer = at,
            Effect::Say(saying) => self.say(saying),
        }
    }

    fn say(&self, saying: Saying) {
        if self.former {
            return;
        }
        let identity = self.identity.object.clone();
        let loaded = |version| self.find(version);
        let origin = |version| {
            let origin = loaded(version).map(|loaded| Arc::clone(&loaded.origin));
            origin.map_or_else(|| origin_of(&self.identity), |origin| (*origin).into())
        };
        let notice = match saying {
            Saying::Rotated { version } => {
                let expires = loaded(version).and_then(|loaded| loaded.expires);
                Notice::Rotated { identity, version, origin: origin(version), expires }
            }
            Saying::CandidateRefused { version, message } => {
                Notice::CandidateRefused { identity, origin: origin(version), message }
            }
            Saying::Expiring { version, expires, ended } => {
                Notice::Expiring { identity, origin: origin(version), expires, ended }
            }
            Saying::Unreadable { message } => Notice::Unreadable { identity, message },
            Saying::Readable => Notice::Readable { identity, origin: origin_of(&self.identity) },
        };
        // There may be no listener.
        let _ = self.context.notices.send(notice);
    }

    fn find(&self, version: Version) -> Option<Arc<Loaded>> {
        self.known.loaded.iter().find(|loaded| loaded.version == version).cloned()
    }

    /// Shows what is in use, and forgets what is not.
    fn publish(&mut self) {
        let (current, candidate) = (self.machine.current(), self.machine.candidate());
        self.known.loaded.retain(|loaded| {
            let version = Some(loaded.version);
            version == current || version == candidate || self.trying.as_ref().map(|trying| trying.version) == version
        });
        let loaded = current.and_then(|version| self.find(version));
        let shown = self.shared.current.load();
        // A Key Vault can change when a version ends.
        let what = |loaded: &Option<Arc<Loaded>>| loaded.as_ref().map(|loaded| (loaded.version, loaded.expires));
        if what(&shown) != what(&loaded) {
            let expires = loaded.as_ref().and_then(|loaded| loaded.expires);
            if !self.former {
                self.context.metrics.credential_expiry(&self.identity.object, expires);
            }
            drop(shown);
            self.shared.current.store(loaded);
        }
        self.shared.fresh.store(milliseconds(self.machine.fresh_until()), Ordering::Release);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.former {
            self.context.metrics.credential_expiry(&self.identity.object, None);
        }
    }
}

/// Where the credential of an identity is said to be.
fn origin_of(identity: &Identity) -> Box<str> {
    match &identity.credential {
        CredentialSource::Secret(secret) => format!("Secret {}/{}", secret.namespace, secret.name).into(),
        CredentialSource::KeyVault(vault) => format!("Key Vault {}", vault.url).into(),
        CredentialSource::None | CredentialSource::Federated(_) => "nowhere".into(),
    }
}

/// Follows the Secret of an identity, if somebody does.
fn following(context: &Context, identity: &Identity) -> Option<watch::Receiver<u64>> {
    let secret = identity.credential.secret()?;
    let mut follow = context.reader.sources().secrets.follow(&secret.namespace, &secret.name);
    follow.mark_unchanged();
    follow.has_changed().is_ok().then_some(follow)
}

/// Waits until what is followed has changed; `false` when it is followed no longer.
async fn changed(follow: Option<&mut watch::Receiver<u64>>) -> bool {
    match follow {
        Some(follow) => follow.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// `None` if it panicked.
async fn read(reading: Option<&mut Working<Read>>) -> Option<Read> {
    match reading {
        Some(reading) => reading.await.ok(),
        None => std::future::pending().await,
    }
}

async fn tried(trying: Option<&mut Trying>) -> Tried {
    match trying {
        Some(trying) => {
            let tried = (&mut trying.work).await;
            tried.unwrap_or_else(|_| Tried::Unclear("trying it failed inside the broker".to_owned()))
        }
        None => std::future::pending().await,
    }
}
