use proptest::prelude::*;

use super::{
    model::{self, Holds, MINUTE, Op, World},
    *,
};

const ON_DEMAND: Freshness = Freshness::OnDemand(MINUTE);
const POLLED: Freshness = Freshness::Polled(Duration::from_mins(5));

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => prop_oneof![Just(Some(0)), (1_u64..900).prop_map(Some), Just(None)].prop_map(Op::Put),
        1 => Just(Op::PutBack),
        1 => Just(Op::Spoil),
        1 => Just(Op::Delete),
        1 => any::<bool>().prop_map(Op::Source),
        1 => any::<bool>().prop_map(Op::Entra),
        1 => Just(Op::Revoke),
        6 => Just(Op::Ask),
        4 => Just(Op::DeliverRead),
        4 => Just(Op::DeliverTry),
        3 => (1_u64..10_000).prop_map(Op::Advance),
        2 => (10_000_u64..2_000_000).prop_map(Op::Advance),
    ];
    proptest::collection::vec(op, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens: what worked serves until another one has been proven, one try and one reading at a time, tries in
    /// measure (the world's assertions); and when all is well again, the newest is in use.
    #[test]
    fn whatever_happens(ops in ops(), seed: u64, freshness in prop_oneof![Just(Freshness::Followed), Just(ON_DEMAND), Just(POLLED)]) {
        let mut world = World::new(freshness, seed);
        for op in ops {
            world.apply(op);
        }
        for op in [Op::Source(true), Op::Entra(true), Op::Put(Some(0))] {
            world.apply(op);
        }
        let Holds::Version(newest) = world.holds else { unreachable!() };
        let mut got = None;
        for _ in 0..60 {
            world.deliver_read();
            world.deliver_try();
            world.apply(Op::Advance(30_000));
            got = world.ask();
        }
        prop_assert_eq!(got, Some(newest));
        prop_assert_eq!(world.machine.candidate(), None);
        // And then there is nothing more to do.
        let (tries, said) = (world.tries.len(), world.said.len());
        for _ in 0..10 {
            world.apply(Op::Advance(600_000));
            world.deliver_read();
            world.deliver_try();
        }
        prop_assert_eq!((world.tries.len(), world.said.len()), (tries, said));
    }
}

fn error_text(text: &str) -> String {
    model::error(text).to_string()
}

fn settle(world: &mut World) {
    world.deliver_read();
    world.deliver_try();
}

/// With a first version that works.
fn working(freshness: Freshness) -> World {
    let mut world = World::new(freshness, 7);
    world.apply(Op::Put(Some(0)));
    assert_eq!(world.ask(), Some(1));
    assert!(world.tries.is_empty(), "the first is not tried: a pod waits");
    world
}

#[test]
fn a_good_one_takes_over_when_it_is_proven() {
    let mut world = working(Freshness::Followed);
    world.apply(Op::Put(Some(0)));
    world.deliver_read();
    assert_eq!((world.ask(), world.tries.len()), (Some(1), 0), "not yet tried");
    world.advance(RotationConfig::default().jitter);
    assert_eq!((world.ask(), world.tries.len()), (Some(1), 1), "being tried");
    world.deliver_try();
    assert_eq!(world.ask(), Some(2));
    assert_eq!(world.said, [Saying::Rotated { version: 2 }]);
}

#[test]
fn a_wrong_one_is_said_once_and_never_used() {
    let mut world = working(Freshness::Followed);
    // 3 and a refusal that time does not mend; 2 is the same and may spread.
    for version in [2, 3] {
        world.said.clear();
        world.apply(Op::Put(None));
        for _ in 0..40 {
            settle(&mut world);
            world.advance(MINUTE);
            assert_eq!(world.ask(), Some(1));
        }
        assert_eq!(world.said, [Saying::CandidateRefused { version, message: "refused".into() }]);
    }
    let of = |version| world.tries.iter().filter(|(_, tried)| *tried == version).count();
    assert_eq!((of(2), of(3)), (11, 2), "{:?}", world.tries);
    // The old one is put back: there is nothing to try any more.
    let before = world.tries.len();
    for _ in 0..2 {
        world.apply(Op::PutBack);
        settle(&mut world);
    }
    world.advance(MINUTE * 600);
    assert_eq!((world.machine.candidate(), world.tries.len()), (None, before));
}

#[test]
fn one_that_spreads_late_is_no_refusal() {
    let mut world = working(Freshness::Followed);
    world.apply(Op::Put(Some(300)));
    for minute in 0..8 {
        settle(&mut world);
        assert_eq!(world.ask(), Some(if minute < 5 { 1 } else { 2 }), "{minute}");
        world.advance(MINUTE);
    }
    assert_eq!(world.said, [Saying::Rotated { version: 2 }]);
}

#[test]
fn when_the_one_in_use_is_refused_the_other_is_tried_at_once() {
    // It was known, and had its time before it.
    let mut world = working(Freshness::Followed);
    world.apply(Op::Put(Some(0)));
    world.deliver_read();
    world.apply(Op::Revoke);
    assert_eq!((world.ask(), world.tries.len()), (Some(2), 1));
    // It was not.
    let mut world = working(POLLED);
    world.apply(Op::Put(Some(0)));
    world.apply(Op::Revoke);
    assert_eq!((world.ask(), world.tries.len()), (Some(2), 1));
    // And what never worked is not held on to.
    let mut world = World::new(Freshness::Followed, 7);
    world.apply(Op::Put(None));
    assert_eq!(world.ask(), None);
    world.apply(Op::Put(Some(0)));
    assert_eq!((world.ask(), world.tries.len()), (Some(2), 0));
}

#[test]
fn what_cannot_be_used_and_what_cannot_be_read_changes_nothing() {
    for freshness in [Freshness::Followed, ON_DEMAND, POLLED] {
        let mut world = working(freshness);
        world.apply(Op::Spoil);
        world.advance(MINUTE * 6);
        for _ in 0..3 {
            assert_eq!(world.ask(), Some(1));
            settle(&mut world);
        }
        assert_eq!(world.said, [Saying::CandidateRefused { version: 2, message: "wrong".into() }], "{freshness:?}");
        world.apply(Op::Source(false));
        world.apply(Op::Delete);
        for _ in 0..10 {
            settle(&mut world);
            world.advance(MINUTE * 6);
            assert_eq!(world.ask(), Some(1));
        }
        // Until it is certain.
        world.apply(Op::Source(true));
        settle(&mut world);
        world.advance(MINUTE * 6);
        world.ask();
        settle(&mut world);
        assert_eq!(world.ask(), None);
        // Then the next is a first one.
        world.apply(Op::Put(Some(0)));
        world.advance(MINUTE);
        assert_eq!(world.ask(), Some(3));
        assert!(world.tries.is_empty());
    }
}

#[test]
fn a_reading_that_failed_is_repeated_by_itself() {
    for freshness in [Freshness::Followed, POLLED] {
        let mut world = working(freshness);
        world.apply(Op::Source(false));
        world.apply(Op::Put(Some(0)));
        let reads = world.reads;
        for _ in 0..20 {
            settle(&mut world);
            world.advance(MINUTE);
        }
        assert!((5..=25).contains(&(world.reads - reads)), "{}", world.reads - reads);
        world.apply(Op::Source(true));
        for _ in 0..10 {
            settle(&mut world);
            world.advance(MINUTE);
        }
        assert_eq!(world.machine.current(), Some(2), "{freshness:?}");
    }
}

#[test]
fn each_loss_of_the_source_is_said_and_each_return() {
    let mut world = World::new(Freshness::Followed, 7);
    world.ask();
    world.apply(Op::Put(Some(0)));
    let told = |world: &World| {
        let kind = |saying: &Saying| match saying {
            Saying::Unreadable { message } => message.to_string(),
            Saying::Readable => "readable".to_owned(),
            other => panic!("{other:?}"),
        };
        world.said.iter().map(kind).collect::<Vec<_>>()
    };
    let gone = error_text("gone");
    settle(&mut world);
    assert_eq!(told(&world), [gone.clone(), "readable".to_owned()]);
    // What it holds stays the same; it is lost for a while, twice.
    for _ in 0..2 {
        world.apply(Op::Source(false));
        world.apply(Op::Revoke);
        for _ in 0..10 {
            world.ask();
            world.advance(MINUTE);
        }
        world.apply(Op::Source(true));
        for _ in 0..3 {
            settle(&mut world);
            world.advance(MINUTE);
        }
    }
    let (lost, found) = (error_text("down"), "readable".to_owned());
    assert_eq!(told(&world), [gone, found.clone(), lost.clone(), found.clone(), lost, found]);
}

#[test]
fn the_source_is_read_in_measure() {
    // Followed, it is read when it changes.
    let mut world = working(Freshness::Followed);
    for _ in 0..100 {
        world.advance(MINUTE);
        world.ask();
    }
    assert_eq!(world.reads, 1, "when it was made");
    // Refused over and over: not read each time.
    world.apply(Op::Revoke);
    for _ in 0..600 {
        world.advance(Duration::from_secs(1));
        assert_eq!(world.ask(), None);
    }
    assert!((10..=35).contains(&world.reads), "{}", world.reads);
    // A vault is read as long as somebody wants what is in it.
    let mut world = working(POLLED);
    for _ in 0..72 {
        world.advance(MINUTE * 60);
        settle(&mut world);
    }
    let reads = world.reads;
    assert!((25..=30).contains(&reads), "{reads}");
    world.advance(MINUTE * 6000);
    assert_eq!(world.reads, reads);
    world.ask();
    assert_eq!(world.reads, reads + 1);
}

#[test]
fn its_end_is_said_in_time() {
    let mut machine = Rotation::new(RotationConfig::default(), Freshness::Followed, 1);
    let mut now = Now { wall: "2026-01-01T00:00:00Z".parse().unwrap(), mono: Duration::ZERO };
    let expires = "2026-04-01T00:00:00Z".parse().unwrap();
    let mut out = Vec::new();
    machine.handle(now, Input::Wanted { refused: None }, &mut out);
    machine.handle(now, Input::Read(Reading::Found { version: 1, expires: Some(expires) }), &mut out);
    let mut said = Vec::new();
    loop {
        let mut timer = None;
        for effect in out.drain(..) {
            match effect {
                Effect::SetTimer { at } => timer = at,
                Effect::Say(Saying::Expiring { ended, .. }) => said.push((now.wall.to_string(), ended)),
                _ => {}
            }
        }
        let Some(at) = timer else { break };
        now = Now { wall: now.wall.checked_add(at.saturating_sub(now.mono)).unwrap(), mono: at };
        machine.handle(now, Input::Timer, &mut out);
    }
    let said: Vec<_> = said.iter().map(|(at, ended)| (&at[..10], *ended)).collect();
    assert_eq!(said, [("2026-03-02", false), ("2026-03-25", false), ("2026-03-31", false), ("2026-04-01", true)]);
}
