//! What one pod may ask for, so that it cannot starve the others: rates by address, places in the line, the surplus of
//! refusals. (Not by pod UID: an address has one pod at a time, and a rate says nothing about what may be had.)
//!
//! Each address has an [`Account`]; a connection looks its account up once. On the way of a request an account is a few
//! atomics, no lock. The table is bounded: accounts that have nothing to remember are forgotten, and when all have, the
//! surplus of addresses shares one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// So many at once, and one more each `every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The time after which one more is allowed.
    pub every: Duration,
    /// How many may come at once.
    pub burst: u32,
}

impl Rate {
    /// `per_second` (at least 1) in the long run, `burst` (at least 1) at once.
    pub fn per_second(per_second: u32, burst: u32) -> Self {
        Self { every: Duration::from_secs(1) / per_second.max(1), burst: burst.max(1) }
    }

    /// No limit.
    pub const UNLIMITED: Self = Self { every: Duration::ZERO, burst: 1 };
}

/// The limits of each address.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Well-formed requests; above it they are answered 429.
    pub requests: Rate,
    /// Probes and malformed requests, which cost next to nothing; above it they are answered more slowly, never
    /// otherwise.
    pub cheap: Rate,
    /// New connections; above it they are served more slowly.
    pub connections: Rate,
    /// Tokens that are not at hand: each different resource is a request upstream, which all pods share.
    pub cold: Rate,
    /// Requests with `bypass_cache`: each is a request upstream.
    pub bypass: Rate,
    /// Audit records of refusals; the surplus is counted, and the next record says how much it was.
    pub records: Rate,
    /// How long the answer to a request above the limit is held back, and the most that a cheap one is. A client that
    /// does not heed `Retry-After` is slowed down by it, and needs no processor.
    pub penalty: Duration,
    /// The most requests of an address that wait (for an assignment or for upstream) at a time.
    pub waiting: usize,
    /// The most requests that wait in all.
    pub waiting_in_all: usize,
    /// The most addresses that are told apart.
    pub accounts: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            // About 4 % of a core. An application needs a few tokens an hour.
            requests: Rate::per_second(2000, 4000),
            cheap: Rate::per_second(2000, 4000),
            connections: Rate::per_second(2000, 4000),
            // IMDS answers 20 a second to all of the virtual machine: a pod that asks for all at once takes one of them.
            cold: Rate::per_second(2, 20),
            bypass: Rate { every: Duration::from_secs(2), burst: 10 },
            records: Rate::per_second(5, 50),
            penalty: Duration::from_millis(100),
            waiting: 64,
            waiting_in_all: 2048,
            accounts: 4096,
        }
    }
}

/// A rate being kept (generic cell rate algorithm): the nanosecond at which everything taken so far is paid off.
#[derive(Debug, Default)]
struct Meter(AtomicU64);

impl Meter {
    /// Takes one at `now`, or says when there will be one.
    fn take(&self, rate: &Rate, now: u64) -> Result<(), Duration> {
        let (every, most) = (nanos(rate.every), nanos(rate.every.saturating_mul(rate.burst)));
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_off| {
            let paid_off = paid_off.max(now) + every;
            (paid_off - now <= most).then_some(paid_off)
        });
        taken.map(drop).map_err(|paid_off| Duration::from_nanos(paid_off.max(now) + every - now - most))
    }

    /// Takes one whether or not there is one, and says how long it is until it is due, at most `longest`.
    fn reserve(&self, rate: &Rate, now: u64, longest: Duration) -> Duration {
        let (every, most) = (nanos(rate.every), nanos(rate.every.saturating_mul(rate.burst)));
        let furthest = now + most + nanos(longest);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_off| {
            Some((paid_off.max(now) + every).min(furthest))
        });
        let after = before.map_or(now, |paid_off| (paid_off.max(now) + every).min(furthest));
        Duration::from_nanos((after - now).saturating_sub(most))
    }

    fn is_full(&self, now: u64) -> bool {
        self.0.load(Ordering::Relaxed) <= now
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 8)
}

/// What an address has used up.
#[derive(Debug, Default)]
pub(super) struct Account {
    requests: Meter,
    cheap: Meter,
    connections: Meter,
    cold: Meter,
    bypass: Meter,
    records: Meter,
    unrecorded: AtomicU64,
    waiting: AtomicUsize,
    /// Hashes of what is being got upstream for it: asking for the same again costs nothing.
    fetching: Mutex<Vec<u64>>,
}

impl Account {
    fn has_nothing_to_remember(&self, now: u64) -> bool {
        [&self.requests, &self.cheap, &self.connections, &self.cold, &self.bypass, &self.records]
            .iter()
            .all(|meter| meter.is_full(now))
            && self.unrecorded.load(Ordering::Relaxed) == 0
    }
}

/// All accounts.
#[derive(Debug)]
pub(super) struct Limits {
    config: LimitsConfig,
    base: Instant,
    table: Mutex<Table>,
    surplus: Arc<Account>,
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    accounts: HashMap<IpAddr, Arc<Account>>,
    sweep_at: usize,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The address has too many.
    Each,
    /// All together are too many.
    All,
}

impl Limits {
    pub(super) fn new(config: LimitsConfig) -> Self {
        Self {
            config,
            base: Instant::now(),
            table: Mutex::default(),
            surplus: Arc::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// The account of an address.
    pub(super) fn account(&self, address: IpAddr) -> Arc<Account> {
        let now = self.now();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = table.accounts.get(&address) {
            return Arc::clone(account);
        }
        if table.accounts.len() >= table.sweep_at.max(64).min(self.config.accounts) {
            table.accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.has_nothing_to_remember(now));
            table.sweep_at = table.accounts.len() * 2;
            if table.accounts.len() >= self.config.accounts {
                return Arc::clone(&self.surplus);
            }
        }
        Arc::clone(table.accounts.entry(address).or_default())
    }

    fn now(&self) -> u64 {
        nanos(self.base.elapsed())
    }

    /// One more request, which begins at `now`; or when.
    pub(super) fn request(&self, account: &Account, now: Instant) -> Result<(), Duration> {
        account.requests.take(&self.config.requests, nanos(now.saturating_duration_since(self.base)))
    }

    /// One more probe or malformed request; how long its answer is to be held back.
    pub(super) fn cheap(&self, account: &Account) -> Duration {
        account.cheap.reserve(&self.config.cheap, self.now(), self.config.penalty)
    }

    /// One more connection; how long it is not to be served yet.
    pub(super) fn connection(&self, account: &Account) -> Duration {
        account.connections.reserve(&self.config.connections, self.now(), self.config.penalty)
    }

    /// One more request with `bypass_cache`; or when.
    pub(super) fn bypass(&self, account: &Account) -> Result<(), Duration> {
        account.bypass.take(&self.config.bypass, self.now())
    }

    /// One more audit record of a refusal: how many were left out before it, or nothing when this one is to be, too.
    pub(super) fn record(&self, account: &Account) -> Option<u64> {
        if account.records.take(&self.config.records, self.now()).is_ok() {
            Some(account.unrecorded.swap(0, Ordering::Relaxed))
        } else {
            account.unrecorded.fetch_add(1, Ordering::Relaxed);
            None
        }
    }

    /// A place among the waiting.
    pub(super) fn wait<'a>(&'a self, account: &'a Account) -> Result<Waiting<'a>, Full> {
        // The guard comes first: it gives back what the checks then find to be too much.
        let waiting = Waiting { account, all: &self.waiting };
        let each = account.waiting.fetch_add(1, Ordering::Relaxed);
        let all = self.waiting.fetch_add(1, Ordering::Relaxed);
        if each >= self.config.waiting {
            return Err(Full::Each);
        }
        if all >= self.config.waiting_in_all {
            return Err(Full::All);
        }
        Ok(waiting)
    }

    /// One more token that has to be got upstream, `hash` of what it is; or when.
    pub(super) fn cold<'a>(&self, account: &'a Account, hash: u64) -> Result<Fetching<'a>, Duration> {
        let mut fetching = account.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if !fetching.contains(&hash) {
            account.cold.take(&self.config.cold, self.now())?;
        }
        fetching.push(hash);
        Ok(Fetching { account, hash })
    }
}

/// A place among the waiting requests.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    account: &'a Account,
    all: &'a AtomicUsize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.account.waiting.fetch_sub(1, Ordering::Relaxed);
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A token being got upstream.
#[derive(Debug)]
pub(super) struct Fetching<'a> {
    account: &'a Account,
    hash: u64,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut fetching = self.account.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = fetching.iter().position(|hash| *hash == self.hash) {
            fetching.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut LimitsConfig)) -> Limits {
        let mut config = LimitsConfig::default();
        change(&mut config);
        Limits::new(config)
    }

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_a_rate_for_each_address() {
        let limits = limits(|config| config.requests = Rate::per_second(10, 5));
        let (one, other) = (limits.account(address(1)), limits.account(address(2)));
        for _ in 0..5 {
            assert_eq!(limits.request(&one, Instant::now()), Ok(()));
        }
        assert_eq!(limits.request(&one, Instant::now()), Err(Duration::from_millis(100)));
        assert_eq!(limits.request(&other, Instant::now()), Ok(()));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!((limits.request(&one, Instant::now()), limits.request(&one, Instant::now())), (Ok(()), Ok(())));
        assert_eq!(limits.request(&one, Instant::now()), Err(Duration::from_millis(50)));
        tokio::time::advance(Duration::from_hours(1)).await;
        // No more than the burst is saved up.
        assert_eq!((0..100).filter(|_| limits.request(&one, Instant::now()).is_ok()).count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_is_none() {
        let limits = limits(|config| (config.requests, config.cheap) = (Rate::UNLIMITED, Rate::UNLIMITED));
        let account = limits.account(address(1));
        for _ in 0..10_000 {
            assert_eq!((limits.request(&account, Instant::now()), limits.cheap(&account)), (Ok(()), Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cheap_is_slowed_down_and_no_more() {
        let limits = limits(|config| {
            config.cheap = Rate::per_second(100, 3);
            config.penalty = Duration::from_millis(25);
        });
        let account = limits.account(address(1));
        let delays: Vec<_> = (0..7).map(|_| limits.cheap(&account).as_millis()).collect();
        assert_eq!(delays, [0, 0, 0, 10, 20, 25, 25]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limits.cheap(&account), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn records_left_out_are_counted_in_the_next() {
        let limits = limits(|config| config.records = Rate::per_second(1, 2));
        let account = limits.account(address(1));
        let records: Vec<_> = (0..5).map(|_| limits.record(&account)).collect();
        assert_eq!(records, [Some(0), Some(0), None, None, None]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limits.record(&account), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_bounded_for_each_and_in_all_and_come_back() {
        let limits = limits(|config| (config.waiting, config.waiting_in_all) = (2, 3));
        let (one, other) = (limits.account(address(1)), limits.account(address(2)));
        let first = limits.wait(&one).unwrap();
        let second = limits.wait(&one).unwrap();
        assert_eq!(limits.wait(&one).unwrap_err(), Full::Each);
        let third = limits.wait(&other).unwrap();
        assert_eq!(limits.wait(&other).unwrap_err(), Full::All);
        drop(second);
        assert!(limits.wait(&other).is_ok());
        drop((first, third));
        assert_eq!(limits.waiting.load(Ordering::SeqCst), 0);
        assert_eq!(one.waiting.load(Ordering::SeqCst) + other.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_token_upstream_counts_once() {
        let limits = limits(|config| config.cold = Rate::per_second(1, 2));
        let account = limits.account(address(1));
        let same: Vec<_> = (0..10).map(|_| limits.cold(&account, 7).unwrap()).collect();
        let _other = limits.cold(&account, 8).unwrap();
        assert!(limits.cold(&account, 9).is_err());
        drop(same);
        // It is over; asking again is another request.
        assert!(limits.cold(&account, 7).is_err());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(limits.cold(&account, 7).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_forgets_what_is_over() {
        let limits = limits(|config| {
            config.accounts = 100;
            config.requests = Rate::per_second(1, 1);
        });
        let held: Vec<_> = (0..50).map(|n| limits.account(address(n))).collect();
        for n in 50..100 {
            limits.request(&limits.account(address(n)), Instant::now()).unwrap();
        }
        // All are remembered: who comes now shares one account.
        assert!(Arc::ptr_eq(&limits.account(address(1000)), &limits.account(address(1001))));
        assert!(limits.request(&limits.account(address(70)), Instant::now()).is_err());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!Arc::ptr_eq(&limits.account(address(1000)), &limits.account(address(1001))));
        let table = limits.table.lock().unwrap();
        assert!(table.accounts.len() <= 52 && held.len() == 50);
        assert!(Arc::ptr_eq(&table.accounts[&address(7)], &held[7]));
    }
}
