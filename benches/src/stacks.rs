//! Stacks that `perf` has sampled, laid to the parts of the work.

use std::collections::BTreeMap;

/// A part of the work, and what in a stack says that it is being done.
#[derive(Debug)]
pub struct Part {
    /// A word for it.
    pub id: &'static str,
    /// What it is, for a person.
    pub what: &'static str,
    /// In the name of a function.
    names: &'static [&'static str],
}

/// What is in none of the others.
const REST: Part = Part { id: "rest", what: "everything else", names: &[] };
const RECORD: &str = "record";
const RECORD_KERNEL: Part = Part { id: "record_write", what: "the kernel: writing the audit record", names: &[] };

/// A sample belongs to the innermost function that one of these names.
const PARTS: [Part; 13] = [
    Part {
        id: "send",
        what: "the kernel: sending the answer (TCP, the bridge, connection tracking, the redirect back)",
        names: &["tcp_sendmsg", "sys_writev", "sys_sendto", "sys_sendmsg", "__GI___writev"],
    },
    Part {
        id: "receive",
        what: "the kernel: receiving the request",
        names: &["tcp_recvmsg", "sys_recvfrom", "sys_recvmsg", "libc_recv", "sys_readv"],
    },
    Part {
        id: "wait",
        what: "the kernel: waiting and waking",
        names: &["sys_epoll_wait", "sys_epoll_pwait", "sys_futex", "epoll_wait", "sys_eventfd", "eventfd_write"],
    },
    Part { id: "accept", what: "accepting connections", names: &["sys_accept", "sys_getsockopt", "server::peers"] },
    Part {
        id: RECORD,
        what: "making the audit record",
        names: &["identity_broker::audit", "identity_node::audit", "tracing"],
    },
    Part {
        id: "clock",
        what: "reading clocks",
        names: &["vdso_clock_gettime", "Timestamp::now", "clock_gettime@@", "Timespec>::now"],
    },
    Part {
        id: "render",
        what: "rendering the answer",
        names: &["tokens::token", "endpoint::error::json", "error::respond"],
    },
    Part { id: "shelf", what: "finding the token", names: &["identity_broker::tokens"] },
    Part {
        id: "decide",
        what: "deciding (three times)",
        names: &["identity_core::", "identity_broker::decide", "::decide"],
    },
    Part { id: "limits", what: "counting against the limits of the pod", names: &["endpoint::limits"] },
    Part {
        id: "parse",
        what: "reading path and query",
        names: &["endpoint::forms", "endpoint::target", "form_urlencoded", "percent_encoding"],
    },
    Part {
        id: "handle",
        what: "the rest of the handler",
        names: &["identity_broker::endpoint", "identity_broker::server", "identity_broker::metrics"],
    },
    Part {
        id: "http",
        what: "HTTP: reading the head, writing the head",
        names: &["hyper::", "httparse", "hyper_util::"],
    },
];
const RUNTIME: Part =
    Part { id: "runtime", what: "the runtime: scheduling tasks", names: &["tokio::", "tokio_util::"] };

/// All parts.
pub fn parts() -> impl Iterator<Item = &'static Part> {
    PARTS.iter().chain([&RUNTIME, &RECORD_KERNEL, &REST])
}

/// How many samples each part has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(BTreeMap<&'static str, u64>);

impl Profile {
    /// Reads what `perf script -F comm,ip,sym` prints: blocks of a command and its stack, the innermost function first.
    pub fn read(text: &str) -> Self {
        let mut samples = BTreeMap::new();
        for block in text.split("\n\n") {
            let stack: Vec<&str> = block.lines().skip_while(|line| line.is_empty()).skip(1).map(str::trim).collect();
            if !stack.is_empty() {
                *samples.entry(part(&stack)).or_default() += 1;
            }
        }
        Self(samples)
    }

    /// How many there are.
    pub fn samples(&self) -> u64 {
        self.0.values().sum()
    }

    /// The share of each part, of 1.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn shares(&self) -> BTreeMap<&'static str, f64> {
        let all = self.samples() as f64;
        self.0.iter().map(|(part, samples)| (*part, *samples as f64 / all)).collect()
    }
}

/// `ip function`, the innermost first.
fn part(stack: &[&str]) -> &'static str {
    let names = || stack.iter().filter_map(|frame| frame.split_once(' ').map(|(_, name)| name));
    let found = names().find_map(|name| {
        PARTS.iter().chain([&RUNTIME]).find(|part| part.names.iter().any(|needle| name.contains(needle)))
    });
    let in_kernel = stack.first().is_some_and(|frame| frame.starts_with("ffff"));
    match found {
        Some(part) if part.id == RECORD && in_kernel => RECORD_KERNEL.id,
        Some(part) => part.id,
        None => REST.id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_the_innermost_part_that_its_stack_names() {
        for (part_id, stack) in [
            (
                "send",
                "ffff1 nf_hook_slow\nffff2 tcp_sendmsg_locked\n1 tokio::io::poll_io\n2 hyper::proto::h1::io::poll_flush",
            ),
            ("record_write", "ffff1 vfs_write\nffff2 ksys_write\n1 write\n2 tracing_subscriber::fmt::event\n3 issue"),
            (
                "record",
                "1 core::str::from_utf8\n2 identity_broker::audit::line\n3 identity_broker::endpoint::token::issue",
            ),
            ("clock", "1 __vdso_clock_gettime\n2 identity_broker::endpoint::broker::Broker<D,T,A,C>::decide"),
            (
                "decide",
                "1 memcmp\n2 identity_core::lookup::Snapshot::decide\n3 identity_broker::endpoint::token::issue",
            ),
            ("handle", "1 mi_free\n2 identity_broker::endpoint::token::issue\n3 hyper::proto::h1::dispatch"),
            ("http", "1 memcpy\n2 <hyper::proto::h1::role::Server as Http1Transaction>::parse\n3 tokio::runtime"),
            ("runtime", "1 memcpy\n2 tokio::runtime::scheduler::run"),
            ("rest", "1 start_thread\n2 clone3"),
        ] {
            assert_eq!(part(&stack.lines().collect::<Vec<_>>()), part_id, "{stack}");
        }
    }

    #[test]
    fn reads_what_perf_prints() {
        let text = "tokio-rt-worker \n\tffffffff8202 tcp_ack\n\tffffffff8200 tcp_sendmsg\n\t  fde9d __GI___writev\n\n\
                    main \n\t  10 hyper::proto::h1::role::parse\n\ntokio-rt-worker \n\tffffffff8200 tcp_sendmsg\n\n";
        let profile = Profile::read(text);
        assert_eq!(profile.samples(), 3);
        let shares = profile.shares();
        assert_eq!(shares.keys().copied().collect::<Vec<_>>(), ["http", "send"]);
        assert!((shares["send"] - 2.0 / 3.0).abs() < 1e-9);
    }
}
