//! A token that is at hand is found without a single allocation, by whatever thread. Counted by the allocator itself.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a failure is the test's")]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use identity_broker::{Backend, Freshness, Manager, ManagerConfig, Token, TokenError, Tokens, tokens::Issued};
use identity_core::lookup::Identity;
use identity_crd::IdentityType;
use jiff::Timestamp;
use support::identity;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator; counts for each thread how often it was asked.
struct Counting;

#[expect(unsafe_code, reason = "an allocator cannot be written without; it only counts and passes on")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // A thread that ends may allocate after its variables are gone.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

fn allocations<R>(work: impl FnOnce() -> R) -> (usize, R) {
    let before = ALLOCATIONS.get();
    let result = work();
    (ALLOCATIONS.get() - before, result)
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

struct Upstream;

impl Backend for Upstream {
    fn credential_version(&self, _: &Identity) -> u64 {
        0
    }

    async fn fetch(&self, _: &Arc<Identity>, resource: &str, _: Freshness) -> Result<Token, TokenError> {
        if resource == "down" {
            return Err(TokenError::Unavailable {
                message: String::new(),
                retry_after: std::time::Duration::from_mins(1),
            });
        }
        let expires_on = Timestamp::from_second(1_800_003_600).unwrap();
        let (client_id, request_id) = (None, None);
        Ok(Token::issued(&Issued {
            access_token: "t",
            resource,
            client_id,
            expires_on,
            now: now(),
            credential: 0,
            request_id,
        }))
    }
}

#[tokio::test]
async fn what_is_at_hand_costs_no_allocation() {
    let manager = Manager::new(Upstream, now, ManagerConfig::default(), Arc::default());
    let kept = Arc::new(identity("a", IdentityType::ServicePrincipal));
    // Another snapshot's copy of the same object.
    let copy = Arc::new(Identity::clone(&kept));
    for resource in ["https://vault.azure.net", "https://storage.azure.com/"] {
        manager.get(&kept, resource, Freshness::Any).await.unwrap();
    }
    manager.get(&kept, "down", Freshness::Any).await.unwrap_err();
    let (measured, _) = allocations(|| vec![1_u8]);
    assert_eq!(measured, 1, "allocations are counted");
    let worker = {
        let (manager, kept, copy) = (manager.clone(), Arc::clone(&kept), Arc::clone(&copy));
        move || {
            // The first reading of a thread may make its variables.
            manager.ready(&kept, "https://vault.azure.net").unwrap().unwrap();
            for identity in [&kept, &copy] {
                for resource in ["https://vault.azure.net", "https://storage.azure.com/"] {
                    let (count, token) = allocations(|| manager.ready(identity, resource));
                    assert!(token.unwrap().is_ok());
                    assert_eq!(count, 0, "{resource}");
                }
                let (count, none) = allocations(|| manager.ready(identity, "https://never.example"));
                assert!(none.is_none());
                assert_eq!(count, 0);
            }
            let (_, failed) = allocations(|| manager.ready(&kept, "down"));
            assert!(failed.unwrap().is_err());
        }
    };
    let threads = [std::thread::spawn(worker.clone()), std::thread::spawn(worker)];
    for thread in threads {
        thread.join().unwrap();
    }
}
