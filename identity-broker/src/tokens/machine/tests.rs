use proptest::{collection::vec, prelude::*};

use super::{
    model::{KEYS, Outcome, RESOURCES, World, config},
    *,
};

#[derive(Clone, Debug)]
enum Op {
    Ask { key: usize, pod: u64, wait: u64, fresh: bool },
    Cancel(usize),
    Land(usize, Outcome),
    GiveUp(usize),
    Advance(u64),
    NearEnd(usize, i64),
    Jump(i64),
    Credential(usize),
    IdentityGone(usize),
    PodGone(u64),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        6 => prop_oneof![Just(0_i64), 1..120_i64, 120..4000_i64, 7000..90_000_i64].prop_map(Outcome::Token),
        2 => (0..70_u64).prop_map(Outcome::Down),
        2 => Just(Outcome::Refused),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let ask = (0..KEYS, 0..3_u64, prop_oneof![0..2000_u64, 2000..20_000_u64], prop::bool::weighted(0.2))
        .prop_map(|(key, pod, wait, fresh)| Op::Ask { key, pod, wait, fresh });
    prop_oneof![
        30 => ask,
        5 => any::<usize>().prop_map(Op::Cancel),
        25 => (any::<usize>(), outcome()).prop_map(|(nth, outcome)| Op::Land(nth, outcome)),
        3 => any::<usize>().prop_map(Op::GiveUp),
        12 => (0..3000_u64).prop_map(Op::Advance),
        12 => (0..400_000_u64).prop_map(Op::Advance),
        2 => (400_000..40_000_000_u64).prop_map(Op::Advance),
        6 => (0..KEYS, prop_oneof![-1..3_i64, 0..310_i64]).prop_map(|(key, left)| Op::NearEnd(key, left)),
        1 => (-8000..8000_i64).prop_map(Op::Jump),
        4 => (0..KEYS / RESOURCES).prop_map(Op::Credential),
        1 => (0..KEYS / RESOURCES).prop_map(Op::IdentityGone),
        1 => (0..3_u64).prop_map(Op::PodGone),
    ]
}

fn perform(world: &mut World, op: &Op) {
    let nth = |all: &[usize], nth: usize| (!all.is_empty()).then(|| all[nth % all.len()]);
    match op {
        Op::Ask { key, pod, wait, fresh } => {
            world.ask(*key, *pod, *wait, if *fresh { Freshness::Upstream } else { Freshness::Any });
        }
        Op::Cancel(nth) => world.cancel(*nth),
        Op::Land(n, outcome) => {
            if let Some(key) = nth(&world.in_flight(), *n) {
                world.land(key, *outcome);
            }
        }
        Op::GiveUp(n) => {
            if let Some(key) = nth(&world.in_flight(), *n) {
                world.give_up(key);
            }
        }
        Op::Advance(millis) => world.advance(*millis),
        Op::NearEnd(key, left) => world.advance_to_end(*key, *left),
        Op::Jump(seconds) => world.jump(*seconds),
        Op::Credential(identity) => world.change_credential(*identity),
        Op::IdentityGone(identity) => world.identity_gone(*identity),
        Op::PodGone(pod) => world.pod_gone(*pod),
    }
}

/// In the end upstream is well, and everybody who asks gets a token.
fn recovers(world: &mut World) {
    let land = |world: &mut World| {
        for key in world.in_flight() {
            world.land(key, Outcome::Token(3600));
        }
    };
    for _ in 0..4 {
        land(world);
    }
    assert_eq!(world.waiting(), 0, "somebody still waits");
    // Longer than any pause that anybody asked for.
    world.advance(80_000);
    for key in 0..KEYS {
        land(world);
        let before = world.answers.len();
        if !world.ask(key, 9 + key as u64, 15_000, Freshness::Any) {
            land(world);
        }
        let (answered, _, good) = world.answers[before];
        assert!(answered == key && good, "no token for key {key} though upstream is well");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// One request upstream for each key at a time; each waiter answered once and in time; no token that has ended, none
    /// below the floor while upstream is well, none of a former credential for longer than a minute; no request upstream
    /// before its pause is over; nobody starves; room is bounded; what readers see is what the model holds.
    #[test]
    fn whatever_happens(ops in vec(op(), 1..150), seed: u64) {
        let mut world = World::new(config(), seed);
        for op in &ops {
            perform(&mut world, op);
        }
        recovers(&mut world);
    }

    /// A token that is in use is always at hand, however long it lives, as long as upstream answers within a few seconds.
    #[test]
    fn only_the_first_waits(
        life in prop_oneof![60..1200_i64, 1200..7200_i64, 7200..90_000_i64],
        every in 1..600_u64, latency in 0..4000_u64, seed: u64,
    ) {
        let mut world = World::new(ManagerConfig::default(), seed);
        let fly = |world: &mut World, millis: u64| {
            let mut left = millis;
            while left > 0 {
                let step = left.min(latency.max(100));
                world.advance(step);
                left -= step;
                if let Some(key) = world.in_flight().first() {
                    world.land(*key, Outcome::Token(life));
                }
            }
        };
        assert!(!world.ask(0, 0, 15_000, Freshness::Any));
        fly(&mut world, latency.max(100));
        let every = every.min(life.unsigned_abs() / 8 + 1) * 1000;
        for _ in 0..300 {
            fly(&mut world, every);
            prop_assert!(world.ask(0, 0, 15_000, Freshness::Any), "has to wait");
        }
        // Not oftener than it takes: each token for at least nine tenths of its time.
        let floor = (life / 4).min(300);
        let rest = if life >= 7200 { life / 2 } else { life - 2 * floor };
        let most = world.now.mono.as_secs() / (rest.unsigned_abs() * 9 / 10) + 1;
        prop_assert!(world.fetches.len() as u64 <= most, "{} fetches, {} at most", world.fetches.len(), most);
    }

    /// In an outage the number of requests upstream is that of the back-off, whoever asks however often.
    #[test]
    fn an_outage_is_not_made_worse(
        asks in vec((0..400_u64, any::<bool>(), any::<bool>()), 500..2000), refused: bool, asked in 0..20_u32, seed: u64,
    ) {
        let mut world = World::new(ManagerConfig::default(), seed);
        world.ask(0, 0, 15_000, Freshness::Any);
        world.land(0, Outcome::Token(600));
        let begin = world.now.mono;
        for (pause, fresh, cancel) in asks {
            world.advance(pause);
            world.ask(0, 0, 15_000, if fresh { Freshness::Upstream } else { Freshness::Any });
            if cancel {
                world.cancel(0);
            }
            world.land(0, if refused { Outcome::Refused } else { Outcome::Down(asked.into()) });
        }
        let took = world.now.mono.saturating_sub(begin).as_secs_f64();
        // 1, 2, 4, 8, 16, 30, 30, … seconds, a quarter less at most, or what was asked for.
        let (mut at, mut most) = (0.0, 0);
        while at <= took {
            most += 1;
            at += (f64::from(1 << (most - 1).min(16)).min(30.0) * 0.75).max(if refused { 0.0 } else { f64::from(asked) });
        }
        let fetches = world.fetches.len() - 1;
        prop_assert!(fetches <= most, "{fetches} requests in {took} s, {most} at most");
    }

    #[test]
    fn the_same_again_is_the_same(ops in vec(op(), 1..60), seed: u64) {
        let run = || {
            let mut world = World::new(config(), seed);
            for op in &ops {
                perform(&mut world, op);
            }
            (world.fetches, world.answers, world.now.mono)
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn a_client_that_leaves_stops_what_only_it_was_waiting_for() {
    let mut world = World::new(config(), 1);
    world.ask(0, 0, 15_000, Freshness::Any);
    world.ask(0, 1, 15_000, Freshness::Any);
    world.cancel(0);
    assert_eq!(world.urgency(0), Some(Urgency::Urgent));
    world.cancel(0);
    assert_eq!(world.urgency(0), Some(Urgency::Nobody));
    // Somebody comes back before it is given up, or after.
    world.ask(0, 0, 15_000, Freshness::Any);
    assert_eq!(world.urgency(0), Some(Urgency::Urgent));
    world.cancel(0);
    world.give_up(0);
    assert!(world.in_flight().is_empty());
    world.ask(0, 0, 15_000, Freshness::Any);
    assert_eq!((world.urgency(0), world.fetches.len()), (Some(Urgency::Urgent), 2));
}

#[test]
fn an_early_refresh_becomes_urgent_when_the_token_is_about_to_end() {
    let mut world = World::new(config(), 1);
    world.ask(0, 0, 15_000, Freshness::Any);
    world.land(0, Outcome::Token(3600));
    world.advance(3_000_000);
    assert_eq!(world.urgency(0), Some(Urgency::Early));
    world.advance(299_000);
    assert_eq!(world.urgency(0), Some(Urgency::Early));
    world.advance(1001);
    assert_eq!(world.urgency(0), Some(Urgency::Urgent));
}

#[test]
fn an_upstream_that_gives_worse_tokens_is_not_asked_at_every_request() {
    let mut world = World::new(config(), 1);
    world.ask(0, 0, 15_000, Freshness::Any);
    world.land(0, Outcome::Token(3600));
    world.advance(3_310_000);
    world.ask(0, 0, 15_000, Freshness::Any);
    world.land(0, Outcome::Token(100));
    // 290 s are left, which is more than 100.
    for _ in 0..100 {
        assert!(world.ask(0, 0, 15_000, Freshness::Any));
    }
    assert_eq!(world.fetches.len(), 2);
}

#[test]
fn a_refusal_is_said_once_and_its_end_once() {
    let mut world = World::new(config(), 1);
    for outcome in [Outcome::Refused, Outcome::Down(0), Outcome::Refused, Outcome::Refused, Outcome::Token(60)] {
        world.advance(31_000);
        world.ask(0, 0, 15_000, Freshness::Any);
        world.land(0, outcome);
    }
    let said: Vec<_> = world.notices.iter().map(|notice| matches!(notice, Notice::Refused { .. })).collect();
    assert_eq!(said, [true, false]);
}

#[test]
fn a_new_credential_is_tried_at_once_where_the_old_one_was_refused() {
    let mut world = World::new(config(), 1);
    for _ in 0..6 {
        world.advance(31_000);
        world.ask(0, 0, 15_000, Freshness::Any);
        world.land(0, Outcome::Refused);
    }
    let fetches = world.fetches.len();
    assert!(world.ask(0, 0, 15_000, Freshness::Any), "the refusal");
    world.change_credential(0);
    assert!(!world.ask(0, 0, 15_000, Freshness::Any));
    assert_eq!(world.fetches.len(), fetches + 1);
}

#[test]
fn after_an_outage_keys_come_back_apart_from_each_other() {
    let config = ManagerConfig { per_identity: 100, capacity: 7, per_pod: 100, ..ManagerConfig::default() };
    let mut world = World::new(config, 3);
    for key in 0..7 {
        world.ask(key, key as u64, 15_000, Freshness::Any);
        world.land(key, Outcome::Token(3600));
    }
    let mut seconds = BTreeSet::new();
    for _ in 0..3590 {
        for key in world.in_flight() {
            world.land(key, Outcome::Down(0));
        }
        world.advance(1000);
        seconds.clear();
        let last: Vec<_> = (0..7).filter_map(|key| world.fetches.iter().rfind(|(_, of)| *of == key)).collect();
        seconds.extend(last.iter().map(|(at, _)| at.as_secs()));
    }
    assert!(seconds.len() >= 5, "{seconds:?}");
}
