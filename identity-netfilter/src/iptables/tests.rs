//! The back ends iptables-* without a kernel: what is written, what is made of recorded listings, and both against a naive
//! model of what iptables-restore does.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::diff::compare;
use crate::rule::Redirect;
use crate::rule::tests::redirects;

fn redirect() -> Redirect {
    Redirect::new(Redirect::METADATA, "10.42.0.1:2579".parse().unwrap()).unwrap()
}

#[test]
fn what_is_written_on_a_clean_host() {
    insta::assert_snapshot!("install", render(&Ruleset::from(&redirect()), &Observation::default()));
}

#[test]
fn what_is_written_over_something_else() {
    let mut kernel = Kernel::default();
    kernel.apply(&render(&Ruleset::from(&redirect()), &Observation::default())).unwrap();
    kernel.apply("*nat\n-I PREROUTING 1 -p tcp -j KUBE-SERVICES\n-A PREROUTING -m comment --comment \"a b\" -j ENTRA-POD-IDENTITY\nCOMMIT\n").unwrap();
    let seen = kernel.observe();
    insta::assert_snapshot!("repair", render(&Ruleset::from(&redirect()), &seen));
    insta::assert_snapshot!("remove", render_removal(&seen));
}

// Recorded: `iptables-legacy -t nat -v -S ENTRA-POD-IDENTITY`, and the same of iptables-nft, 1.8.9.
#[test]
fn recorded_listings_are_understood() {
    for head in ["", "# Warning: iptables-legacy tables present, use iptables-legacy to see them\n"] {
        let nat = format!(
            "{head}-N ENTRA-POD-IDENTITY\n-A ENTRA-POD-IDENTITY -d 169.254.169.254/32 ! -i lo -p tcp -m tcp --dport 80 -m comment --comment \"entra-pod-identity: to the broker\" -c 7 420 -j DNAT --to-destination 10.42.0.1:2579\n"
        );
        let filter = format!(
            "{head}-N ENTRA-POD-IDENTITY\n-A ENTRA-POD-IDENTITY -d 169.254.169.254/32 -m comment --comment \"entra-pod-identity: not redirected\" -c 5 300 -j DROP\n"
        );
        let seen = Observation {
            prerouting: Some(parse_chain(&nat, Attachment::Right)),
            forward: Some(parse_chain(&filter, Attachment::Right)),
            ..Observation::default()
        };
        assert_eq!(compare(&Ruleset::from(&redirect()), &seen), []);
        assert_eq!((seen.prerouting.unwrap().packets, seen.forward.unwrap().packets), (7, 5));
    }
}

#[test]
fn a_rule_that_says_anything_else_is_foreign() {
    for text in [
        "",
        "-j ACCEPT",
        "-d 169.254.169.254/32",
        "-d 169.254.169.254/31 -j DROP",
        "! -d 169.254.169.254/32 -j DROP",
        "-d 169.254.169.254/32 -d 1.2.3.4/32 -j DROP",
        "-d 169.254.169.254/32 -p tcp -j DROP",
        "-d 169.254.169.254/32 ! -p tcp -m tcp --dport 80 -j DROP",
        "-d 169.254.169.254/32 -p tcp -m tcp ! --dport 80 -j DROP",
        "-d 169.254.169.254/32 -p tcp -m tcp --dport 80:90 -j DROP",
        "-d 169.254.169.254/32 -p udp -m udp --dport 80 -j DROP",
        "-d 169.254.169.254/32 -s 10.0.0.0/8 -j DROP",
        "-d 169.254.169.254/32 -m mark --mark 0x1 -j DROP",
        "-d 169.254.169.254/32 -o eth0 -j DROP",
        "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1-10.0.0.2:80",
        "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80 --random",
        "-d 169.254.169.254/32 -m comment --comment \"no end -j DROP",
    ] {
        let chain = parse_chain(&format!("-A {CHAIN} {text}\n"), Attachment::Right);
        assert_eq!(chain.rules, [Found::Foreign(text.to_owned())]);
    }
}

#[test]
fn jumps_are_found_wherever_they_are() {
    for (listing, says, count) in [
        ("-P PREROUTING ACCEPT\n", "nothing jumps", 0),
        ("-A PREROUTING -j ENTRA-POD-IDENTITY-2\n", "nothing jumps", 0),
        ("-A PREROUTING -m comment --comment \"-j ENTRA-POD-IDENTITY\" -j X\n", "nothing jumps", 0),
        ("-A PREROUTING -j X\n-A PREROUTING -j ENTRA-POD-IDENTITY\n", "rule 2, not the first", 1),
        ("-A PREROUTING -j ENTRA-POD-IDENTITY\n-A PREROUTING -j ENTRA-POD-IDENTITY\n", "2 rules jump", 2),
        ("-A PREROUTING -p tcp -j ENTRA-POD-IDENTITY\n", "has conditions: -p tcp -j", 1),
        ("-A PREROUTING -g ENTRA-POD-IDENTITY\n", "has conditions: -g", 1),
    ] {
        let (attachment, jumps) = parse_parent(listing, Place::Prerouting);
        assert!(matches!(&attachment, Attachment::Wrong(found) if found.contains(says)), "{listing}: {attachment:?}");
        assert_eq!(jumps.len(), count, "{listing}");
    }
    let (attachment, jumps) = parse_parent(
        "-P PREROUTING ACCEPT\n-A PREROUTING -j ENTRA-POD-IDENTITY\n-A PREROUTING -j X\n",
        Place::Prerouting,
    );
    assert_eq!((attachment, jumps.len()), (Attachment::Right, 1));
}

#[test]
fn lines_are_split_as_the_programs_write_them() {
    for (text, expected) in [
        (
            r#"-m comment --comment "a \"b\" \\ c" -j X"#,
            Some(vec!["-m", "comment", "--comment", r#"a "b" \ c"#, "-j", "X"]),
        ),
        (r#""""#, Some(vec![""])),
        ("  ", Some(vec![])),
        (r#"a "b"#, None),
    ] {
        let expected: Option<Vec<String>> =
            expected.map(|words: Vec<&str>| words.into_iter().map(str::to_owned).collect());
        assert_eq!(words(text), expected);
    }
}

/// Rules by table and chain, changed as `iptables-restore --noflush` does, with no regard to speed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kernel(BTreeMap<String, BTreeMap<String, Vec<String>>>);

impl Kernel {
    fn apply(&mut self, input: &str) -> Result<(), String> {
        let mut table = None;
        for line in input.lines() {
            if let Some(name) = line.strip_prefix('*') {
                let mut chains = self.0.get(name).cloned().unwrap_or_default();
                let built_in = if name == "nat" { "PREROUTING" } else { "FORWARD" };
                chains.entry(built_in.to_owned()).or_default();
                table = Some((name.to_owned(), chains));
                continue;
            }
            let (name, mut chains) = table.take().ok_or("outside of a table")?;
            if line == "COMMIT" {
                self.0.insert(name, chains);
                continue;
            }
            if let Some(declared) = line.strip_prefix(':') {
                chains.insert(declared.split(' ').next().unwrap_or_default().to_owned(), Vec::new());
            } else {
                let (command, rest) = line.split_once(' ').ok_or("no argument")?;
                let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
                let referred = chains.values().flatten().any(|rule| rule.contains(&format!("-j {chain}")));
                let rules = chains.get_mut(chain).ok_or("no such chain")?;
                match command {
                    "-A" => rules.push(rule.to_owned()),
                    "-I" => rules.insert(0, rule.strip_prefix("1 ").ok_or("no position 1")?.to_owned()),
                    "-D" => {
                        let at = rules.iter().position(|other| other == rule).ok_or("no such rule")?;
                        rules.remove(at);
                    }
                    "-F" => rules.clear(),
                    "-X" if rules.is_empty() && !referred => _ = chains.remove(chain),
                    other => return Err(format!("cannot {other}")),
                }
            }
            table = Some((name, chains));
        }
        table.map_or(Ok(()), |_| Err("no COMMIT".to_owned()))
    }

    fn list(&self, table: &str, chain: &str) -> Option<String> {
        let rules = self.0.get(table)?.get(chain)?;
        Some(rules.iter().map(|rule| format!("-A {chain} {rule}\n")).collect::<Vec<_>>().concat())
    }

    fn observe(&self) -> Observation {
        let mut seen = Observation::default();
        for place in Place::CLOSED_FIRST {
            let listing = self.list(table(place), parent(place)).unwrap_or_default();
            let (attachment, jumps) = parse_parent(&listing, place);
            seen.jumps.extend(jumps);
            seen.set(place, self.list(table(place), CHAIN).map(|listing| parse_chain(&listing, attachment)));
        }
        seen
    }

    /// Everything that is not ours.
    fn others(&self) -> Vec<(String, String, Vec<String>)> {
        let ours = |rule: &String| rule.ends_with(&format!(" {CHAIN}"));
        self.0
            .iter()
            .flat_map(|(table, chains)| chains.iter().map(move |(chain, rules)| (table, chain, rules)))
            .filter(|(_, chain, _)| *chain != CHAIN)
            .map(|(table, chain, rules)| {
                (table.clone(), chain.clone(), rules.iter().filter(|rule| !ours(rule)).cloned().collect())
            })
            .collect()
    }
}

/// Any state of the two tables in which our chains and the jumps to them may be missing, doubled, moved or changed.
fn kernels() -> impl Strategy<Value = Kernel> {
    let parent = || {
        proptest::collection::vec(
            prop_oneof![
                Just("-j KUBE-SERVICES".to_owned()),
                Just("-s 10.0.0.0/8 -m comment --comment \"x y\" -j ACCEPT".to_owned()),
                Just(format!("-j {CHAIN}")),
                Just(format!("-p tcp -j {CHAIN}")),
            ],
            0..5,
        )
    };
    let chain = || {
        proptest::collection::vec(
            prop_oneof![
                Just("-j ACCEPT".to_owned()),
                redirects().prop_map(|redirect| rule(&Ruleset::from(&redirect).forward)),
                redirects().prop_map(|redirect| rule(&Ruleset::from(&redirect).prerouting)),
            ],
            0..3,
        )
    };
    let table = move |built_in: &'static str| {
        (parent(), proptest::option::of(chain())).prop_map(move |(mut parent, chain)| {
            // A jump needs its chain.
            if chain.is_none() {
                parent.retain(|rule| !rule.ends_with(CHAIN));
            }
            let mut chains = BTreeMap::from([(built_in.to_owned(), parent)]);
            chains.extend(chain.map(|rules| (CHAIN.to_owned(), rules)));
            chains
        })
    };
    (table("PREROUTING"), table("FORWARD"))
        .prop_map(|(nat, filter)| Kernel(BTreeMap::from([("nat".to_owned(), nat), ("filter".to_owned(), filter)])))
}

proptest! {
    #[test]
    fn writing_makes_any_state_right_and_leaves_others_alone(mut kernel in kernels(), redirect in redirects()) {
        let rules = Ruleset::from(&redirect);
        let others = kernel.others();
        kernel.apply(&render(&rules, &kernel.observe())).unwrap();
        prop_assert_eq!(compare(&rules, &kernel.observe()), vec![]);
        prop_assert_eq!(kernel.others(), others.clone());
        // Again: the same.
        let before = kernel.clone();
        kernel.apply(&render(&rules, &kernel.observe())).unwrap();
        prop_assert_eq!(&kernel, &before);
        // And away with it.
        kernel.apply(&render_removal(&kernel.observe())).unwrap();
        prop_assert_eq!(kernel.others(), others);
        let left = kernel.0.values().flatten().any(|(chain, rules)| chain == CHAIN || rules.join(" ").contains(CHAIN));
        prop_assert!(!left, "{:?}", kernel);
    }

    #[test]
    fn any_state_can_be_removed(mut kernel in kernels()) {
        let others = kernel.others();
        kernel.apply(&render_removal(&kernel.observe())).unwrap();
        prop_assert_eq!(kernel.others(), others);
        prop_assert_eq!(kernel.observe().jumps, vec![]);
    }

    #[test]
    fn another_redirect_is_found(written in redirects(), wanted in redirects()) {
        let mut kernel = Kernel::default();
        kernel.apply(&render(&Ruleset::from(&written), &Observation::default())).unwrap();
        prop_assert_eq!(compare(&Ruleset::from(&wanted), &kernel.observe()).is_empty(), wanted == written);
    }

    /// Without any one word of a rule, or with one twice, something differs.
    #[test]
    fn any_change_of_a_word_is_found(redirect in redirects(), place in prop_oneof![Just(Place::Prerouting), Just(Place::Forward)], at in 0_usize..20, double: bool) {
        let wanted = Ruleset::from(&redirect);
        let mut kernel = Kernel::default();
        kernel.apply(&render(&wanted, &Observation::default())).unwrap();
        let rules = kernel.0.get_mut(table(place)).unwrap().get_mut(CHAIN).unwrap();
        // The comment says nothing to the kernel.
        let (matches, target) = rules[0].split_once("-m comment --comment ").unwrap();
        let target = &target[target.find("-j").unwrap()..];
        let mut words: Vec<_> = format!("{matches}{target}").split(' ').map(str::to_owned).collect();
        let at = at % words.len();
        // "-m tcp" may be left out or said twice.
        let module = words[at] == "-m" || words.get(at.wrapping_sub(1)).is_some_and(|word| word == "-m");
        if double { words.insert(at, words[at].clone()) } else { words.remove(at); }
        rules[0] = words.join(" ");
        prop_assert!(module || !compare(&wanted, &kernel.observe()).is_empty(), "{:?}", kernel);
    }
}
