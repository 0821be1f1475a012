//! Wanted rules against found ones.

use std::fmt;

use crate::rule::{Attachment, Found, Observation, Place, Rule, Ruleset};

/// One way in which the kernel's rules are not as they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The chain (nft: or the whole table) is not there.
    MissingChain {
        /// Which one.
        place: Place,
    },
    /// The chain is not evaluated where it should be: no jump, several, not the first (iptables), or another hook,
    /// priority or policy (nft).
    Attachment {
        /// Which chain.
        place: Place,
        /// What was found.
        found: String,
    },
    /// The chain lacks the rule.
    MissingRule {
        /// In which chain.
        place: Place,
        /// The rule.
        wanted: Rule,
    },
    /// The chain has another rule instead of the wanted one.
    ChangedRule {
        /// In which chain.
        place: Place,
        /// The rule that should be there.
        wanted: Rule,
        /// The one that is.
        found: String,
    },
    /// The chain has a rule that is not ours, or one of ours twice.
    ForeignRule {
        /// In which chain.
        place: Place,
        /// The rule.
        found: String,
    },
    /// A table of our own holds something that is not ours.
    Stranger {
        /// What it is.
        found: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::MissingChain { place } => write!(f, "{place}: the chain is missing"),
            Difference::Attachment { place, found } => write!(f, "{place}: {found}"),
            Difference::MissingRule { place, wanted } => write!(f, "{place}: the rule ({wanted}) is missing"),
            Difference::ChangedRule { place, wanted, found } => {
                write!(f, "{place}: instead of the rule ({wanted}) there is ({found})")
            }
            Difference::ForeignRule { place, found } => write!(f, "{place}: a rule that is not ours: ({found})"),
            Difference::Stranger { found } => write!(f, "our table holds something that is not ours: {found}"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Rule(rule) => rule.fmt(f),
            Found::Foreign(text) => f.write_str(text),
        }
    }
}

/// Every difference; none means that the kernel does what is wanted.
pub(crate) fn compare(wanted: &Ruleset, found: &Observation) -> Vec<Difference> {
    let mut differences = Vec::new();
    for place in Place::CLOSED_FIRST {
        let wanted = wanted.rule(place);
        let Some(chain) = found.chain(place) else {
            differences.push(Difference::MissingChain { place });
            continue;
        };
        if let Attachment::Wrong(found) = &chain.attachment {
            differences.push(Difference::Attachment { place, found: found.clone() });
        }
        let ours = chain.rules.iter().position(|rule| matches!(rule, Found::Rule(rule) if rule == wanted));
        match (ours, chain.rules.as_slice()) {
            (None, [only]) => {
                differences.push(Difference::ChangedRule { place, wanted: wanted.clone(), found: only.to_string() });
                continue;
            }
            (None, _) => differences.push(Difference::MissingRule { place, wanted: wanted.clone() }),
            (Some(_), _) => {}
        }
        for (index, rule) in chain.rules.iter().enumerate() {
            if Some(index) != ours {
                differences.push(Difference::ForeignRule { place, found: rule.to_string() });
            }
        }
    }
    differences.extend(found.strangers.iter().map(|found| Difference::Stranger { found: found.clone() }));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Chain, Redirect};

    fn wanted() -> Ruleset {
        Ruleset::from(&Redirect::new(Redirect::METADATA, "10.42.0.1:2579".parse().unwrap()).unwrap())
    }

    fn found(wanted: &Ruleset) -> Observation {
        let chain = |rule: &Rule| {
            Some(Chain { attachment: Attachment::Right, rules: vec![Found::Rule(rule.clone())], packets: 7 })
        };
        Observation { prerouting: chain(&wanted.prerouting), forward: chain(&wanted.forward), ..Observation::default() }
    }

    #[test]
    fn what_is_as_wanted_differs_in_nothing() {
        assert_eq!(compare(&wanted(), &found(&wanted())), []);
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let wanted = wanted();
        let foreign = || Found::Foreign("-j ACCEPT".to_owned());
        let mut cases: Vec<(Observation, &[&str])> = Vec::new();
        cases.push((
            Observation::default(),
            &["filter FORWARD: the chain is missing", "nat PREROUTING: the chain is missing"],
        ));
        let mut case = found(&wanted);
        case.forward.as_mut().unwrap().attachment = Attachment::Wrong("the jump is not the first".to_owned());
        cases.push((case, &["filter FORWARD: the jump is not the first"]));
        let mut case = found(&wanted);
        case.forward.as_mut().unwrap().rules.clear();
        cases.push((case, &["filter FORWARD: the rule (to 169.254.169.254: drop) is missing"]));
        let mut case = found(&wanted);
        case.forward.as_mut().unwrap().rules = vec![foreign()];
        cases.push((case, &["filter FORWARD: instead of the rule (to 169.254.169.254: drop) there is (-j ACCEPT)"]));
        let mut case = found(&wanted);
        case.prerouting.as_mut().unwrap().rules.insert(0, foreign());
        cases.push((case, &["nat PREROUTING: a rule that is not ours: (-j ACCEPT)"]));
        let mut case = found(&wanted);
        case.prerouting.as_mut().unwrap().rules.push(Found::Rule(wanted.prerouting.clone()));
        cases.push((
            case,
            &[
                "nat PREROUTING: a rule that is not ours: (arriving not on lo, tcp port 80 to 169.254.169.254: redirect to 10.42.0.1:2579)",
            ],
        ));
        let mut case = found(&wanted);
        case.strangers.push("chain x".to_owned());
        cases.push((case, &["our table holds something that is not ours: chain x"]));
        for (case, says) in cases {
            let differences: Vec<_> = compare(&wanted, &case).iter().map(ToString::to_string).collect();
            assert_eq!(differences, says);
        }
    }
}
