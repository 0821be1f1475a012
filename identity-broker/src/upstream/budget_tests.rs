use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Ask(u64, u64, bool),
    Change(usize, bool),
    Leave(usize),
    Done(usize),
    Pause(u64),
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..4_u64, 0..3_u64, any::<bool>()).prop_map(|(namespace, identity, early)| Op::Ask(namespace, identity, early)),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(nth, early)| Op::Change(nth, early)),
        2 => any::<usize>().prop_map(Op::Leave),
        8 => any::<usize>().prop_map(Op::Done),
        1 => (0..2000_u64).prop_map(Op::Pause),
        6 => (0..500_u64).prop_map(Op::Advance),
    ]
}

fn class(early: bool) -> Class {
    if early { Class::Early } else { Class::Urgent }
}

/// Everybody who waits, in the order in which they got in line; who has a place; when places were given.
#[derive(Default)]
struct Model {
    waiting: Vec<(Ticket, Who, Class)>,
    running: Vec<Ticket>,
    given: Vec<Duration>,
    paused: Duration,
    /// How often each namespace was passed over by each other since it last had its turn, in each class.
    passed: BTreeMap<(bool, u64, u64), u32>,
    next: Ticket,
}

const RATES: Rates = Rates { at_once: 3, burst: 4, a_second: 10 };

impl Model {
    fn granted(&mut self, ticket: Ticket, now: Duration) {
        let at = self.waiting.iter().position(|(waiting, ..)| *waiting == ticket).expect("waited, once");
        let (_, who, class) = self.waiting.remove(at);
        self.running.push(ticket);
        assert!(self.running.len() <= RATES.at_once, "too many at a time");
        assert!(now >= self.paused, "upstream is to be left alone");
        self.given.push(now);
        let second = self.given.iter().filter(|at| **at + Duration::from_secs(1) > now).count();
        assert!(second <= 14, "{second} within a second");
        if class == Class::Early {
            assert!(self.waiting.iter().all(|(.., class)| *class == Class::Early), "an early one before an urgent one");
        }
        // First come, first served for one identity in one class.
        let earlier = self.waiting[..at].iter().any(|(_, other, line)| *other == who && *line == class);
        assert!(!earlier, "overtaken by one's own");
        // No namespace has two turns while another that waits has none.
        let early = class == Class::Early;
        for (_, other, line) in &self.waiting {
            if *line == class && other.namespace != who.namespace {
                self.passed.entry((early, other.namespace, who.namespace)).or_default();
            }
        }
        self.passed.retain(|(line, waits, _), _| {
            *line != early
                || *waits != who.namespace
                    && self.waiting.iter().any(|(_, other, line)| *line == class && other.namespace == *waits)
        });
        for ((line, _, by), times) in &mut self.passed {
            if *line == early && *by == who.namespace {
                *times += 1;
                assert!(*times <= 1, "two turns for one namespace, none for another");
            }
        }
    }
}

fn run(ops: &[Op]) {
    let mut budget = Budget::new(RATES);
    let mut model = Model::default();
    let mut now = Duration::from_secs(5);
    let nth = |len: usize, n: usize| (len > 0).then(|| n % len);
    let pump = |budget: &mut Budget, model: &mut Model, now: Duration| {
        while let Some(ticket) = budget.grant(now) {
            model.granted(ticket, now);
        }
        // What could begin, has begun.
        let could = model.running.len() < RATES.at_once && !model.waiting.is_empty();
        assert_eq!(budget.wake().is_some(), could);
        assert!(budget.wake().is_none_or(|at| at > now));
    };
    for op in ops {
        match op {
            Op::Ask(namespace, identity, early) => {
                let who = Who { namespace: *namespace, identity: *identity };
                budget.ask(model.next, who, class(*early));
                model.waiting.push((model.next, who, class(*early)));
                model.next += 1;
            }
            Op::Change(n, early) => {
                if let Some(n) = nth(model.waiting.len(), *n) {
                    let (ticket, who, before) = model.waiting[n];
                    budget.change(ticket, class(*early));
                    if before != class(*early) {
                        model.waiting.remove(n);
                        model.waiting.push((ticket, who, class(*early)));
                        let gone = |line: Class, early: bool, waits: u64| {
                            early == (line == Class::Early)
                                && !model.waiting.iter().any(|(_, who, other)| *other == line && who.namespace == waits)
                        };
                        model.passed.retain(|(early, waits, _), _| !gone(before, *early, *waits));
                    }
                }
            }
            Op::Leave(n) => {
                if let Some(n) = nth(model.waiting.len(), *n) {
                    budget.leave(model.waiting[n].0);
                    let (_, who, line) = model.waiting.remove(n);
                    let still =
                        model.waiting.iter().any(|(_, other, l)| *l == line && other.namespace == who.namespace);
                    model.passed.retain(|(early, waits, _), _| {
                        still || *early != (line == Class::Early) || *waits != who.namespace
                    });
                }
            }
            Op::Done(n) => {
                if let Some(n) = nth(model.running.len(), *n) {
                    budget.leave(model.running.remove(n));
                }
            }
            Op::Pause(millis) => {
                model.paused = model.paused.max(now + Duration::from_millis(*millis));
                budget.pause(now + Duration::from_millis(*millis));
            }
            Op::Advance(millis) => {
                // As the driver does: at every time that it was told, and in the end.
                let target = now + Duration::from_millis(*millis);
                while let Some(at) = budget.wake().filter(|at| *at <= target) {
                    now = at;
                    pump(&mut budget, &mut model, now);
                }
                now = target;
            }
        }
        pump(&mut budget, &mut model, now);
    }
    // Nobody starves: in the end everybody has had a turn, and it was not slower than it had to be.
    let left = model.waiting.len();
    let begin = now.max(model.paused);
    for round in 0.. {
        assert!(round <= 2 * left + 2, "somebody starves");
        model.running.drain(..).for_each(|ticket| budget.leave(ticket));
        pump(&mut budget, &mut model, now);
        match budget.wake() {
            Some(at) => now = at,
            None if model.waiting.is_empty() => break,
            None => {}
        }
    }
    assert!(
        now <= begin + Duration::from_millis(100 * (left as u64 + 1)),
        "slow: {left} in {:?}",
        now.saturating_sub(begin)
    );
    model.running.drain(..).for_each(|ticket| budget.leave(ticket));
    assert!(
        budget.is_at_rest(now.max(model.paused) + Duration::from_secs(1))
            && budget.urgent.0.is_empty()
            && budget.early.0.is_empty()
    );
}

proptest! {
    #[test]
    fn turns_are_fair_and_bounded(ops in vec(op(), 1..250)) {
        run(&ops);
    }
}

#[test]
fn the_order_of_turns() {
    let mut budget = Budget::new(Rates { at_once: 100, burst: 100, a_second: 1 });
    let asks = [(1, 1, true), (1, 1, false), (1, 1, false), (1, 2, false), (2, 3, true), (2, 3, false), (2, 3, false)];
    for (ticket, (namespace, identity, early)) in (0..).zip(asks) {
        budget.ask(ticket, Who { namespace, identity }, class(early));
    }
    budget.change(0, Class::Urgent);
    let order: Vec<_> = std::iter::from_fn(|| budget.grant(Duration::ZERO)).collect();
    assert_eq!(order, [1, 5, 3, 6, 2, 0, 4]);
}
