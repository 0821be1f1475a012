//! Which requests have their spans kept: so many of a hundred, and never more than so many in a second.
//!
//! Not by the trace id, as samplers elsewhere do, nor by a parent's flag: both are a pod's to choose.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceContextExt as _, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};
use tokio::time::Instant;

use super::shape::PEER;

/// Throws dice for each trace, within a bound.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    ratio: f64,
    most: u32,
    /// This second's.
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
struct Kept {
    since: Instant,
    all: u32,
    /// How many of each address; no more addresses than there are traces in a second.
    of: Vec<(String, u32)>,
}

impl Sampler {
    pub(super) fn new(ratio: f64, most: u32) -> Self {
        let kept = Kept { since: Instant::now(), all: 0, of: Vec::new() };
        Self { ratio, most, kept: Arc::new(Mutex::new(kept)) }
    }

    /// Whether one more trace, of this address, is kept.
    fn keep(&self, address: &str) -> bool {
        if rand::random::<f64>() >= self.ratio {
            return false;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.since.elapsed() >= Duration::from_secs(1) {
            *kept = Kept { since: Instant::now(), all: 0, of: Vec::new() };
        }
        if kept.all >= self.most {
            return false;
        }
        let share = (self.most / 4).max(1);
        match kept.of.iter_mut().find(|(other, _)| other == address) {
            Some((_, count)) if *count >= share => return false,
            Some((_, count)) => *count += 1,
            None => kept.of.push((address.to_owned(), 1)),
        }
        kept.all += 1;
        true
    }
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let parent = parent.map(|context| context.span().span_context().clone());
        let own = parent.filter(|parent| parent.is_valid() && !parent.is_remote());
        let keep = if let Some(parent) = own {
            parent.is_sampled()
        } else {
            let peer = attributes.iter().find(|attribute| attribute.key.as_str() == PEER);
            let peer = peer.map(|attribute| attribute.value.as_str().into_owned()).unwrap_or_default();
            self.keep(peer.rsplit_once(':').map_or("", |(address, _port)| address))
        };
        let decision = if keep { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::NONE }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags};

    use super::*;

    fn asked(sampler: &Sampler, peer: &str, parent: Option<(bool, bool)>) -> bool {
        let parent = parent.map(|(remote, sampled)| {
            let flags = TraceFlags::default().with_sampled(sampled);
            let span = SpanContext::new(TraceId::from(1), SpanId::from(1), flags, remote, TraceState::NONE);
            Context::new().with_remote_span_context(span)
        });
        let attributes = [KeyValue::new(PEER, peer.to_owned())];
        let result =
            sampler.should_sample(parent.as_ref(), TraceId::from(1), "", &SpanKind::Internal, &attributes, &[]);
        result.decision == SamplingDecision::RecordAndSample
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_a_quarter_and_all_have_the_bound() {
        let sampler = Sampler::new(1.0, 8);
        let kept =
            |n: u8, times: usize| (0..times).filter(|_| asked(&sampler, &format!("10.0.0.{n}:{times}"), None)).count();
        assert_eq!(kept(1, 100), 2);
        assert_eq!(kept(2, 100), 2);
        assert_eq!((3..100).map(|n| kept(n, 3)).sum::<usize>(), 4);
        assert!(sampler.kept.lock().unwrap().of.len() <= 8);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(kept(1, 100), 2, "and again a second later");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_s_flag_and_trace_id_count_for_nothing_and_a_parent_of_ours_for_all() {
        let never = Sampler::new(0.0, 1000);
        assert!(!asked(&never, "10.0.0.1:1", Some((true, true))));
        assert!(asked(&never, "10.0.0.1:1", Some((false, true))));
        let always = Sampler::new(1.0, 1000);
        assert!(asked(&always, "10.0.0.1:1", Some((true, false))));
        assert!(!asked(&always, "10.0.0.1:1", Some((false, false))));
        // The same trace id time and again: a sampler that goes by it would say the same each time.
        let half = Sampler::new(0.5, 100_000);
        let kept = (0..1000).filter(|n| asked(&half, &format!("10.0.0.1:{n}"), Some((true, true)))).count();
        assert!((300..700).contains(&kept), "{kept}");
    }
}
