//! Whether the time boxes of an assignment are open.

use super::{Assignment, Instant};
use crate::{
    explain::{Recorder, Verdict},
    schedule::{Gate, Passage},
};

/// Whether `gate`, which stands before `assignment`, is open.
pub(super) fn passage<R: Recorder>(
    gate: &Gate,
    assignment: &Assignment,
    instant: &Instant<'_>,
    recorder: &mut R,
) -> Passage {
    let granted = assignment.granted.as_ref();
    let passage = gate.at(instant.now, instant.latest(), granted.map(|granted| granted.until));
    if let Some(granted) = granted {
        recorder.check(instant.latest() < granted.until, || {
            format!("grant {}/{} is active until {}", assignment.object.namespace, granted.name, granted.until)
        });
    }
    recorder.line(passage.is_open().into(), || match passage {
        Passage::Open { until: Some(until), closes } => {
            format!("the time box is open until {until}{}", if closes { "" } else { ", or longer" })
        }
        Passage::Open { until: None, .. } => "the time box is open".into(),
        Passage::Closed { opens, reason } => {
            let opens = match (opens, gate.error()) {
                (_, Some(error)) => format!(" ({error})"),
                (Some(opens), _) => format!("; it opens next at {opens}"),
                (None, _) => "; it does not open by itself".into(),
            };
            format!("the time box is closed: {}{opens}", reason.words())
        }
    });
    if !passage.is_open() && gate.takes_grants() && !gate.needs_grant() {
        recorder.line(Verdict::Note, || "a grant would open it".into());
    }
    passage
}
