use std::sync::atomic::AtomicUsize;

use futures::future::poll_immediate;

use super::*;
use crate::tokens::{Ask, Freshness};

const IMDS: Rates = Rates { at_once: 5, burst: 4, a_second: 14 };

fn who(identity: u64) -> Who {
    Who { namespace: identity, identity }
}

fn urgent() -> Interest {
    Ask::constant(Freshness::Any, Urgency::Urgent).interest
}

fn far() -> Instant {
    Instant::now() + Duration::from_hours(1)
}

async fn turn(limit: &Limit, of: u64) -> Turn {
    limit.turn(who(of), &mut urgent(), far()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_second_has_more_than_burst_and_rate() {
    let limit = Limit::new(IMDS);
    let mut turns = Vec::new();
    for pause in [0, 0, 3, 0] {
        tokio::time::advance(Duration::from_secs(pause)).await;
        for _ in 0..30 {
            drop(turn(&limit, 0).await);
            turns.push(Instant::now());
        }
    }
    for (n, from) in turns.iter().enumerate() {
        let within = turns[n..].iter().take_while(|turn| **turn - *from < Duration::from_secs(1)).count();
        assert!(within <= 18, "{within} within a second");
    }
    // And it is not slower than it has to be: 60 turns after a burst of 4.
    let took = turns[59] - turns[0];
    assert!(took >= Duration::from_secs(4) && took <= Duration::from_millis(4200), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn at_most_so_many_at_once_and_who_gives_up_takes_no_place_with_him() {
    let limit = Limit::new(Rates { at_once: 2, burst: 1000, a_second: 1000 });
    let (one, two) = (turn(&limit, 1).await, turn(&limit, 1).await);
    let mut before = Box::pin(turn(&limit, 2));
    let mut given = Box::pin(turn(&limit, 3));
    let mut after = Box::pin(turn(&limit, 4));
    for waiting in [&mut before, &mut given, &mut after] {
        assert!(poll_immediate(waiting).await.is_none());
    }
    // Before it is given, and after it is given but before it is noticed.
    drop(before);
    drop(one);
    drop(given);
    let after = poll_immediate(after).await.expect("passed on");
    drop((two, after));
    assert!(limit.0.lock().given.is_empty());
    let _both = (turn(&limit, 1).await, turn(&limit, 1).await);
    assert!(poll_immediate(Box::pin(turn(&limit, 1))).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_becomes_urgent_goes_first_and_what_nobody_wants_not_at_all() {
    let limit = Limit::new(Rates { at_once: 1, burst: 1000, a_second: 1000 });
    let first = turn(&limit, 0).await;
    let (raise, mut raised) = Interest::new(Urgency::Early);
    let (drop_it, mut dropped) = Interest::new(Urgency::Urgent);
    let mut early = Ask::constant(Freshness::Any, Urgency::Early).interest;
    let order = Mutex::new(Vec::new());
    let wait = async |name: u64, interest: &mut Interest| {
        let turn = limit.turn(who(name), interest, far()).await;
        order.lock().unwrap().push((name, turn.is_ok()));
    };
    let changes = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        raise.send_replace(Urgency::Urgent);
        drop_it.send_replace(Urgency::Nobody);
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(first);
    };
    tokio::join!(wait(1, &mut early), wait(2, &mut raised), wait(3, &mut dropped), changes);
    assert_eq!(*order.lock().unwrap(), [(3, false), (2, true), (1, true)]);
}

#[tokio::test(start_paused = true)]
async fn upstream_is_left_alone_as_it_asked() {
    let limit = Limit::new(IMDS);
    limit.pause(Duration::from_secs(7));
    let begin = Instant::now();
    let soon = limit.turn(who(1), &mut urgent(), begin + Duration::from_secs(5)).await.map(drop);
    assert_eq!((soon, begin.elapsed()), (Err(NoTurn::Paused(Duration::from_secs(7))), Duration::ZERO));
    drop(turn(&limit, 1).await);
    assert_eq!(begin.elapsed().as_secs(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_place_is_lost_or_made() {
    let limit = Limit::new(Rates { at_once: 3, burst: 100_000, a_second: 100_000 });
    let at_once = Arc::new(AtomicUsize::new(0));
    let tasks = (0..500_u64).map(|n| {
        let (limit, at_once) = (limit.clone(), Arc::clone(&at_once));
        tokio::spawn(async move {
            // Every fifth gives up after it has been polled a few times.
            if n % 5 == 0 {
                let mut taking = Box::pin(turn(&limit, n % 7));
                for _ in 0..n % 4 {
                    if poll_immediate(&mut taking).await.is_some() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            } else {
                let _place = turn(&limit, n % 7).await;
                let now = at_once.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(now <= 3, "{now}");
                tokio::task::yield_now().await;
                at_once.fetch_sub(1, Ordering::SeqCst);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        tokio::time::timeout(Duration::from_secs(20), task).await.expect("in time").unwrap();
    }
    let both = [turn(&limit, 1).await, turn(&limit, 1).await, turn(&limit, 1).await];
    assert!(limit.0.lock().given.is_empty());
    drop(both);
}

#[tokio::test(start_paused = true)]
async fn exempted_pods_and_managed_identities_share_what_imds_bears() {
    let limit = Limit::new(IMDS);
    let budget = ImdsBudget::of(limit.clone());
    let (wait, mut turns) = (Duration::from_mins(1), Vec::new());
    for n in 0..60 {
        if n % 2 == 0 {
            drop(turn(&limit, 0).await);
        } else {
            drop(budget.turn("ns", "pod", wait).await.unwrap());
        }
        turns.push(Instant::now());
    }
    assert!(turns[59] - turns[0] >= Duration::from_secs(4), "{:?}", turns[59] - turns[0]);
    // No more at a time.
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(turn(&limit, 0).await);
    }
    assert_eq!(budget.turn("ns", "pod", Duration::from_secs(1)).await.err(), Some(Duration::from_secs(2)));
    drop(held);
    // What one of them is told counts for both.
    budget.pause(Duration::from_mins(5));
    let pause = budget.turn("ns", "pod", Duration::from_secs(1)).await.err().unwrap();
    assert!(pause > Duration::from_mins(4), "{pause:?}");
    assert!(matches!(limit.turn(who(1), &mut urgent(), Instant::now()).await, Err(NoTurn::Paused(_))));
}

#[tokio::test(start_paused = true)]
async fn tenants_have_their_own_and_are_bounded() {
    let tenants = Tenants::new(IMDS);
    tenants.of(1).pause(Duration::from_hours(1));
    assert!(tenants.of(1).turn(who(1), &mut urgent(), Instant::now()).await.is_err());
    assert!(tenants.of(2).turn(who(1), &mut urgent(), Instant::now()).await.is_ok());
    for tenant in 10..2000 {
        drop(tenants.of(tenant));
    }
    assert!(tenants.limits.lock().unwrap().len() <= TENANTS);
    assert!(!tenants.of(1).is_at_rest(), "what was learnt is not forgotten");
}

#[test]
fn retries_are_a_share_of_requests() {
    let budget = RetryBudget::new();
    let granted = (0..1000)
        .filter(|_| {
            budget.deposit();
            budget.withdraw()
        })
        .count();
    assert!((100..=115).contains(&granted), "{granted}");
}
