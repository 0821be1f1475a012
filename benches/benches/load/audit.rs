//! What the audit costs: the node daemon with the audit as `deploy/` has it, the journal and Events of it, and without any. What
//! ships cannot do without: that is a build of its own, of the same code (feature `unaudited`).

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{
    NODE,
    generator::Pace,
    rows::Row,
    stage::{METADATA, Programs},
    tokens::{Bench, Extent, prime},
};

impl Bench {
    /// Rounds with and without, alternating: tokens a second, and processor microseconds for each.
    pub(crate) async fn audit(
        &mut self,
        extent: &Extent,
        programs: &Programs,
        work: &Path,
    ) -> anyhow::Result<Vec<Row>> {
        let unaudited = programs.unaudited.as_ref().context("there is no daemon without audit")?;
        let mut rounds = Vec::new();
        for round in 0..extent.rounds {
            let mut sides = [(0.0, 0.0); 2];
            // What drifts must not favour one of them.
            for side in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                // A new one each time: what the round before has left unread is not this one's.
                let directory = work.join(format!("audit-{round}"));
                let journal = directory.display().to_string();
                if side == 0 {
                    let off = ["--audit-log=never", "--audit-events=off"];
                    self.stage.restart_as(unaudited, NODE, &off).await?;
                } else {
                    let on = ["--audit-journal", &journal, "--audit-events=series"];
                    self.stage.restart_as(&programs.node, NODE, &on).await?;
                }
                prime(&self.stage).await?;
                let pace = Pace::Closed { millis: extent.warm_millis };
                let (outcome, micros) = self.run(METADATA, &self.stage.node, pace).await?;
                sides[side] = (outcome.per_second(), micros);
                self.stage.empty_log()?;
                let _ = fs::remove_dir_all(&directory);
            }
            super::say(&format!("audit off, on (tokens/s, processor µs): {sides:.2?}"));
            rounds.push(sides);
        }
        self.stage.move_to(NODE).await?;
        prime(&self.stage).await?;
        let each = |of: fn(&[(f64, f64); 2]) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
        Ok(vec![
            Row::new(
                "audit_cost_percent",
                "what the audit takes of the throughput of warm tokens, journal and Events on against none, same run, \
                 alternating (generator and server share the machine)",
                "%",
                &each(|[off, on]| (1.0 - on.0 / off.0) * 100.0),
            )
            .at_most(10.0),
            Row::new("audit_off_per_s", "those tokens without audit", "1/s", &each(|[off, _]| off.0)),
            Row::new("audit_on_per_s", "and with", "1/s", &each(|[_, on]| on.0)),
            Row::new(
                "audit_off_cpu_us",
                "processor time for such a token without audit",
                "µs",
                &each(|[off, _]| off.1),
            ),
            Row::new("audit_on_cpu_us", "and with", "µs", &each(|[_, on]| on.1)),
        ])
    }
}
