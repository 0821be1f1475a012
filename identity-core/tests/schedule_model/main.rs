//! Time boxes against somebody who watches the clocks: twenty zones, thirty years, boxes of every kind.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failure is the test's, and figures are to be seen")]

mod walker;

use std::sync::atomic::{AtomicU64, Ordering};

use identity_core::schedule::{Gate, Passage};
use identity_crd::{GrantPolicy, TimeBox};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use walker::{Clock, FROM, Field, TO, Window};

/// Of every kind: no change, both hemispheres, half and quarter hours, a half-hour change, changes at midnight, a day that
/// was left out, several changes a year, abolished and moved rules.
const ZONES: [&str; 20] = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Dublin",
    "America/Los_Angeles",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Havana",
    "America/Santiago",
    "America/St_Johns",
    "America/Nuuk",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Asia/Gaza",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Antarctica/Troll",
];

/// How many boxes.
const CASES: u64 = 100_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: i64) -> i64 {
        (self.next() % n.unsigned_abs()).cast_signed()
    }

    fn one_in(&mut self, n: i64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len().cast_signed() as i64)).unwrap()]
    }
}

fn field(random: &mut Random, min: i64, max: i64, stars: i64) -> Field {
    let mut value = || min + random.below(max - min + 1);
    let (a, b, c) = (value(), value(), value());
    let (low, high) = (a.min(b), a.max(b));
    let all = || min..=max;
    match random.below(6 + stars) {
        0 => Field { text: format!("{low}-{high}"), star: false, values: (low..=high).collect() },
        1 => Field { text: format!("{a},{b},{c}"), star: false, values: vec![a, b, c] },
        2 => {
            let step = 2 + random.below(6);
            let values = all().filter(|v| (v - min) % step == 0).collect();
            Field { text: format!("*/{step}"), star: false, values }
        }
        3 => {
            let step = 1 + random.below(4);
            let values = (low..=high).filter(|v| (v - low) % step == 0).collect();
            Field { text: format!("{low}-{high}/{step}"), star: false, values }
        }
        4 | 5 => Field { text: a.to_string(), star: false, values: vec![a] },
        _ => Field { text: "*".into(), star: true, values: all().collect() },
    }
}

fn window<'a>(random: &mut Random, clocks: &'a [Clock], near: i64, seconds: bool) -> Window<'a> {
    let exact = |value: i64| Field { text: value.to_string(), star: false, values: vec![value] };
    let clock = random.pick(clocks);
    let second = if seconds { field(random, 0, 59, 2) } else { exact(0) };
    let minute = if random.one_in(2) { exact(random.below(4) * 15) } else { field(random, 0, 59, 1) };
    // Mostly when clocks are changed.
    let hour = if random.one_in(2) { exact(random.below(4)) } else { field(random, 0, 23, 3) };
    let (dom, months) = (field(random, 1, 31, 14), field(random, 1, 12, 30));
    let mut dow = field(random, 0, 7, 8);
    let names = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
    if let ([value], Some(name)) =
        (&*dow.values.clone(), dow.values.first().and_then(|v| names.get(usize::try_from(*v).unwrap())))
        && random.one_in(2)
    {
        assert!(!dow.star && *value < 7);
        dow.text = (*name).to_owned();
    }
    let durations = [60, 15 * 60, 3600, 3600, 5400, 7200, 8 * 3600, 86_400, 30 * 3600];
    let duration = if seconds { 1 + random.below(3600) } else { *random.pick(&durations) };
    let mut excluded = Vec::new();
    for _ in 0..(random.below(8) - 4).max(0) {
        let day = Timestamp::from_second(near + (random.below(7) - 3) * 86_400).unwrap();
        excluded.push(TimeZone::UTC.to_datetime(day).date());
    }
    Window { clock, fields: [second, minute, hour, dom, months, dow], duration, excluded }
}

struct Boxed<'a> {
    not_before: Option<i64>,
    not_after: Option<i64>,
    windows: Vec<Window<'a>>,
}

fn time_box<'a>(random: &mut Random, clocks: &'a [Clock], now: i64, seconds: bool, windows: i64) -> Boxed<'a> {
    let step = if seconds { 1 } else { 60 };
    let bound = |random: &mut Random| random.one_in(4).then(|| now + (random.below(4000) - 2000) * step);
    let (mut not_before, not_after) = (bound(random), bound(random));
    if not_after.is_some() && not_before >= not_after {
        not_before = None;
    }
    Boxed { not_before, not_after, windows: (0..windows).map(|_| window(random, clocks, now, seconds)).collect() }
}

fn text(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_string()
}

impl Boxed<'_> {
    fn spec(&self, seconds: bool) -> TimeBox {
        let windows = self.windows.iter().map(|w| {
            let from = usize::from(!seconds);
            let schedule = w.fields[from..].iter().map(|f| f.text.as_str()).collect::<Vec<_>>().join(" ");
            let time_zone = (w.clock.name != "UTC" || w.duration != 3600).then(|| w.clock.name.to_owned());
            let exclude_dates = (!w.excluded.is_empty()).then(|| w.excluded.iter().map(Date::to_string).collect());
            identity_crd::Window {
                schedule,
                duration: format!("{}s", w.duration),
                time_zone,
                exclude_dates,
                ..Default::default()
            }
        });
        TimeBox {
            not_before: self.not_before.map(text),
            not_after: self.not_after.map(text),
            windows: (!self.windows.is_empty()).then(|| windows.collect()),
            ..TimeBox::default()
        }
    }

    fn within(&self, at: i64) -> bool {
        self.not_before.is_none_or(|start| start <= at) && self.not_after.is_none_or(|end| at < end)
    }

    /// Whether any window is open at each step; without windows always.
    fn walk(&self, from: i64, to: i64, step: i64) -> Vec<bool> {
        let mut any = vec![self.windows.is_empty(); usize::try_from((to - from) / step).unwrap()];
        for window in &self.windows {
            for (any, open) in any.iter_mut().zip(window.walk(from, to, step)) {
                *any |= open;
            }
        }
        any
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    open: u32,
    closed: u32,
    changed: u32,
    at_a_change_of_clocks: u32,
    refused: u32,
}

impl Seen {
    fn and(self, other: Self) -> Self {
        Self {
            open: self.open + other.open,
            closed: self.closed + other.closed,
            changed: self.changed + other.changed,
            at_a_change_of_clocks: self.at_a_change_of_clocks + other.at_a_change_of_clocks,
            refused: self.refused + other.refused,
        }
    }
}

/// One box, or two, with or without a grant, at one instant.
fn case(random: &mut Random, clocks: &[Clock], seen: &mut Seen) {
    let seconds = random.one_in(25);
    let (step, steps) = if seconds { (1, 4000) } else { (60, 36 * 60) };
    // Often near a change of some clock.
    let mut now = FROM + random.below((TO - FROM) / 60) * 60;
    if random.one_in(2) {
        let clock = random.pick(clocks);
        let (change, _) = *random.pick(&clock.offsets);
        if (FROM..TO).contains(&change) {
            seen.at_a_change_of_clocks += 1;
            now = change + (random.below(2400) - 1200) * if seconds { 3 } else { 60 };
        }
    }
    let with_identity = random.one_in(4);
    let windows = [1, 1, 1, 2, 3, 0][usize::try_from(random.below(6)).unwrap()];
    let binding = time_box(random, clocks, now, seconds, windows);
    let identity = with_identity.then(|| {
        let windows = random.below(2);
        time_box(random, clocks, now, seconds, windows)
    });
    let (required, granted): (bool, Option<i64>) =
        (random.one_in(2), random.one_in(2).then(|| now + (random.below(600) - 100) * step));
    let grants = random.one_in(3) && (required || windows > 0);
    let mut spec = binding.spec(seconds);
    if grants {
        spec.grant = Some(GrantPolicy { required: Some(required), ..GrantPolicy::default() });
    }
    let of_identity = identity.as_ref().map(|identity| identity.spec(seconds));
    let gate = Gate::new(Some(&spec), of_identity.as_ref()).unwrap();
    if let Some(error) = gate.error() {
        // The only thing that is wrong with any of these.
        assert!(error.to_string().contains("never comes"), "{error}");
        seen.refused += 1;
        return;
    }

    let to = now + steps * step;
    let by_binding = binding.walk(now, to, step);
    let by_identity = identity.as_ref().map(|identity| identity.walk(now, to, step));
    let grant = granted.filter(|_| grants);
    let open: Vec<bool> = (0..by_binding.len())
        .map(|n| {
            let at = now + i64::try_from(n).unwrap() * step;
            let active = grant.is_some_and(|until| at < until);
            let by_binding = match (grants, required) {
                (false, _) => by_binding[n],
                (true, true) => by_binding[n] && active,
                (true, false) => by_binding[n] || active,
            };
            by_binding
                && binding.within(at)
                && by_identity.as_ref().is_none_or(|open| open[n])
                && identity.as_ref().is_none_or(|identity| identity.within(at))
        })
        .collect();
    let change = open.iter().position(|is| *is != open[0]).map(|n| now + i64::try_from(n).unwrap() * step);
    let context = || {
        let about = serde_json::json!({"binding": spec, "identity": of_identity, "grant": grant.map(text)});
        format!("at {} of {about}\nthe clocks say {}, then a change at {:?}", text(now), open[0], change.map(text))
    };

    let at = Timestamp::from_second(now).unwrap();
    let granted = granted.map(|until| Timestamp::from_second(until).unwrap());
    let passage = gate.now(at, granted);
    assert_eq!(passage.is_open(), open[0], "{passage:?} {}", context());
    *(if open[0] { &mut seen.open } else { &mut seen.closed }) += 1;
    seen.changed += u32::from(change.is_some());
    // Where it has not looked further, it is asked again.
    let mut last = passage;
    while let Passage::Open { until: Some(until), closes: false } = last
        && until.as_second() < to
    {
        last = gate.now(until, granted);
        assert!(change.is_none_or(|change| until.as_second() <= change), "{until} {}", context());
    }
    let next = match last {
        Passage::Open { until, .. } => until,
        // It ended just where one had not looked further.
        Passage::Closed { .. } if passage.is_open() => change.map(|c| Timestamp::from_second(c).unwrap()),
        Passage::Closed { opens, .. } => opens,
    };
    let next = next.map(Timestamp::as_second);
    match (passage, grants && !required && grant.is_some_and(|until| now < until)) {
        // Nothing opens it by itself.
        (Passage::Closed { opens, .. }, _) if grants && required && grant.is_none_or(|until| until <= now) => {
            assert_eq!(opens, None, "{}", context());
        }
        // With a grant that may overlap with windows, the end is no later than the real one.
        (Passage::Open { until: None, .. }, true) => assert_eq!(change, None, "{passage:?} {}", context()),
        (Passage::Open { until: Some(until), .. }, true) => {
            let until = until.as_second();
            assert!(until > now && change.is_none_or(|change| until <= change), "{passage:?} {}", context());
            assert!(
                Some(until) == change || until >= grant.unwrap().min(to) || until > to,
                "{passage:?} {}",
                context()
            );
        }
        _ => assert_eq!(next.filter(|next| *next < to), change, "{passage:?} {}", context()),
    }
}

#[test]
fn boxes_agree_with_the_clocks_on_the_wall() {
    let clocks: Vec<Clock> = ZONES.iter().map(|name| Clock::new(name, &zone(name))).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(0);
    let work = || {
        let mut seen = Seen::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= CASES {
                return seen;
            }
            case(&mut Random(number), &clocks, &mut seen);
        }
    };
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // A case that fails has said which it is.
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Seen::default(), Seen::and)
    });
    println!("{CASES} cases: {seen:?}");
    assert_eq!(u64::from(seen.open + seen.closed + seen.refused), CASES);
    let least = u32::try_from(CASES / 20).unwrap();
    assert!(seen.open > least && seen.closed > least && seen.changed > least && seen.at_a_change_of_clocks > least);
}

fn zone(name: &str) -> TimeZone {
    jiff::tz::TimeZoneDatabase::bundled().get(name).unwrap()
}

/// The walker is no better than its clocks: they are those of the zones.
#[test]
fn the_clocks_are_those_of_the_zones() {
    let mut changes = 0;
    for name in ZONES {
        let (zone, clock) = (zone(name), Clock::new(name, &zone(name)));
        changes += clock.offsets.len();
        let mut at = Timestamp::from_second(FROM).unwrap();
        while at.as_second() < TO {
            let place = clock.offsets.partition_point(|(from, _)| *from <= at.as_second()) - 1;
            assert_eq!(i64::from(zone.to_offset(at).seconds()), clock.offsets[place].1, "{name} {at}");
            at += 37.hours();
        }
    }
    assert!(changes > 500, "{changes}");
}

/// The table of docs/time-boxes.md.
#[test]
fn what_the_page_says() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    for (schedule, duration, zone, now, open, next) in [
        ("0 0-7 * * *", "1h", "UTC", "2026-11-24T00:00:00Z", true, "2026-11-24T08:00:00Z"),
        ("0 0 */2 * MON", "1h", "UTC", "2026-11-24T02:00:00Z", false, "2026-11-25T00:00:00Z"),
        ("0 0 */2 * MON", "1h", "UTC", "2026-11-29T02:00:00Z", false, "2026-11-30T00:00:00Z"),
        ("0 0 L * *", "1h", "UTC", "2028-02-10T00:00:00Z", false, "2028-02-29T00:00:00Z"),
        ("0 3 * * TUE#2", "1h", "UTC", "2026-11-24T00:00:00Z", false, "2026-12-08T03:00:00Z"),
        ("0 0 15W * *", "1h", "UTC", "2026-11-01T00:00:00Z", false, "2026-11-16T00:00:00Z"),
        ("30 2 * * *", "1h", "Europe/Berlin", "2026-03-29T00:30:00Z", false, "2026-03-29T01:00:00Z"),
        ("30 2 * * *", "1h", "Europe/Berlin", "2026-10-25T00:00:00Z", false, "2026-10-25T00:30:00Z"),
        ("30 2 * * *", "1h", "Europe/Berlin", "2026-10-25T00:30:00Z", true, "2026-10-25T01:30:00Z"),
        ("30 2 * * *", "1h", "Europe/Berlin", "2026-10-25T01:30:00Z", false, "2026-10-26T01:30:00Z"),
        ("*/30 * * * *", "30m", "Europe/Berlin", "2026-10-25T00:00:00Z", true, "2026-10-25T01:00:00Z"),
        ("*/30 * * * *", "30m", "Europe/Berlin", "2026-10-25T01:00:00Z", false, "2026-10-25T02:00:00Z"),
        ("0 23 * * FRI", "3h", "UTC", "2026-11-28T01:00:00Z", true, "2026-11-28T02:00:00Z"),
    ] {
        let window = identity_crd::Window {
            schedule: schedule.into(),
            duration: duration.into(),
            time_zone: Some(zone.into()),
            // On the day after the opening it says nothing.
            exclude_dates: Some(vec!["2026-11-28".into()]),
            ..identity_crd::Window::default()
        };
        let spec = TimeBox { windows: Some(vec![window]), ..TimeBox::default() };
        let state = identity_core::schedule::TimeBox::compile(&spec, "spec.timeBox").unwrap().at(at(now));
        assert_eq!((state.open, state.next), (open, Some(at(next))), "{schedule} in {zone} at {now}");
    }
}
