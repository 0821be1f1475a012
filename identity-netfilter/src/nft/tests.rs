//! The back end nft without a kernel: what is written, and what is made of recorded listings.

use proptest::prelude::*;

use super::*;
use crate::diff::compare;
use crate::rule::Redirect;
use crate::rule::tests::redirects;

fn redirect() -> Redirect {
    Redirect::new(Redirect::METADATA, "10.42.0.1:2579".parse().unwrap()).unwrap()
}

/// What `nft -j list table ip entra-pod-identity` of nftables 1.0.6 prints for a redirect; recorded, with the addresses
/// replaced.
fn listing(redirect: &Redirect) -> Value {
    json!({"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "ip", "name": TABLE, "handle": 2}},
        {"chain": {"family": "ip", "table": TABLE, "name": "forward", "handle": 1,
            "type": "filter", "hook": "forward", "prio": -10, "policy": "accept"}},
        {"chain": {"family": "ip", "table": TABLE, "name": "prerouting", "handle": 2,
            "type": "nat", "hook": "prerouting", "prio": -110, "policy": "accept"}},
        {"rule": {"family": "ip", "table": TABLE, "chain": "forward", "handle": 3,
            "comment": "entra-pod-identity: not redirected", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": redirect.metadata().ip().to_string()}},
            {"counter": {"packets": 5, "bytes": 300}},
            {"drop": null}]}},
        {"rule": {"family": "ip", "table": TABLE, "chain": "prerouting", "handle": 4,
            "comment": "entra-pod-identity: to the broker", "expr": [
            {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "lo"}},
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": redirect.metadata().ip().to_string()}},
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": redirect.metadata().port()}},
            {"counter": {"packets": 7, "bytes": 420}},
            {"dnat": {"addr": redirect.to().ip().to_string(), "port": redirect.to().port()}}]}}
    ]})
}

fn differences(wanted: &Redirect, listing: &Value) -> Vec<String> {
    let seen = parse(&listing.to_string()).unwrap();
    compare(&Ruleset::from(wanted), &seen).iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_written() {
    let rules = Ruleset::from(&redirect());
    insta::assert_snapshot!("install", render(&rules, &Observation::default()));
    let strange = Observation { strangers: vec!["chain other".to_owned()], ..Observation::default() };
    insta::assert_snapshot!("anew", render(&rules, &strange));
    insta::assert_snapshot!("remove", render_removal());
}

#[test]
fn a_recorded_listing_is_what_was_written_and_its_counters_are_read() {
    let seen = parse(&listing(&redirect()).to_string()).unwrap();
    assert_eq!(compare(&Ruleset::from(&redirect()), &seen), []);
    assert_eq!((seen.prerouting.unwrap().packets, seen.forward.unwrap().packets), (7, 5));
}

#[test]
fn a_chain_that_hangs_elsewhere_is_made_anew() {
    let mut changed = listing(&redirect());
    let rules = Ruleset::from(&redirect());
    let anew = |listing: &Value| render(&rules, &parse(&listing.to_string()).unwrap()).contains("delete table");
    assert!(!anew(&changed));
    changed["nftables"][2]["chain"]["prio"] = json!(10);
    assert!(anew(&changed));
}

#[test]
fn what_is_no_listing_is_an_error() {
    assert!(parse("").is_err());
    assert!(parse("{\"nftables\": 1}").is_err());
}

/// Changes of one thing, each at a place in the listing, and what is said of it.
fn mutations() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("/nftables/1/table/flags", json!("dormant"), "the flags \"dormant\""),
        ("/nftables/2/chain/prio", json!(10), "priority 10"),
        ("/nftables/2/chain/hook", json!("input"), "hook input"),
        ("/nftables/2/chain/policy", json!("drop"), "policy drop"),
        ("/nftables/3/chain/type", json!("filter"), "type filter"),
        ("/nftables/3/chain/prio", json!(-100), "priority -100"),
        ("/nftables/2/chain/name", json!("other"), "chain other"),
        ("/nftables/4/rule/expr/0/match/right", json!("169.254.169.253"), "to 169.254.169.253: drop"),
        ("/nftables/4/rule/expr/0/match/op", json!("!="), "instead of the rule"),
        ("/nftables/4/rule/expr/0/match/left/payload/field", json!("saddr"), "saddr"),
        ("/nftables/4/rule/expr/2", json!({"accept": null}), "accept"),
        ("/nftables/4/rule/expr/2", json!({"drop": {}}), "instead of the rule"),
        (
            "/nftables/4/rule/expr/1",
            json!({"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 1}}),
            "mark",
        ),
        ("/nftables/5/rule/expr/0/match/op", json!("=="), "arriving on lo"),
        ("/nftables/5/rule/expr/0/match/right", json!("eth0"), "arriving not on eth0"),
        ("/nftables/5/rule/expr/2/match/right", json!(81), "tcp port 81"),
        ("/nftables/5/rule/expr/2/match/right", json!({"set": [80, 81]}), "set"),
        ("/nftables/5/rule/expr/2/match/left/payload/protocol", json!("udp"), "udp"),
        ("/nftables/5/rule/expr/4/dnat/addr", json!("10.42.0.2"), "redirect to 10.42.0.2:2579"),
        ("/nftables/5/rule/expr/4/dnat/port", json!(2580), "redirect to 10.42.0.1:2580"),
        ("/nftables/5/rule/expr/4/dnat/flags", json!("random"), "random"),
        ("/nftables/5/rule/chain", json!("forward"), "nat PREROUTING: the rule"),
    ]
}

#[test]
fn any_one_change_is_found_and_said() {
    for (pointer, value, says) in mutations() {
        let mut changed = listing(&redirect());
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match changed.pointer_mut(parent).unwrap() {
            Value::Object(object) => _ = object.insert(key.to_owned(), value.clone()),
            Value::Array(array) => array[key.parse::<usize>().unwrap()] = value.clone(),
            other => panic!("{other}"),
        }
        let found = differences(&redirect(), &changed).join("; ");
        assert!(found.contains(says), "{pointer} = {value}: {found:?}");
    }
}

#[test]
fn whatever_else_the_table_holds_is_found() {
    for (item, says) in [
        (json!({"set": {"family": "ip", "name": "s", "table": TABLE, "type": "ipv4_addr", "handle": 9}}), "\"set\""),
        (json!({"chain": {"family": "ip", "table": TABLE, "name": "regular", "handle": 9}}), "chain regular"),
        (
            json!({"counter": {"family": "ip", "name": "c", "table": TABLE, "handle": 9, "packets": 0, "bytes": 0}}),
            "\"counter\"",
        ),
        (
            json!({"rule": {"family": "ip", "table": TABLE, "chain": "forward", "handle": 9, "expr": [{"accept": null}]}}),
            "accept",
        ),
    ] {
        let mut more = listing(&redirect());
        more["nftables"].as_array_mut().unwrap().push(item);
        let found = differences(&redirect(), &more).join("; ");
        assert!(found.contains(says), "{found:?}");
    }
}

proptest! {
    #[test]
    fn reading_is_the_inverse_of_writing(written in redirects(), wanted in redirects()) {
        prop_assert_eq!(differences(&written, &listing(&written)), Vec::<String>::new());
        prop_assert_eq!(differences(&wanted, &listing(&written)).is_empty(), wanted == written);
        // What is written says the same as what is read.
        let text = render(&Ruleset::from(&written), &Observation::default());
        let words = [
            format!("ip daddr {} tcp dport {} counter dnat to {}", written.metadata().ip(), written.metadata().port(), written.to()),
            format!("ip daddr {} counter drop", written.metadata().ip()),
        ];
        prop_assert!(words.iter().all(|words| text.contains(words)));
    }

    /// Without any one item or expression, or with one twice, something differs.
    #[test]
    fn nothing_may_be_missing_or_doubled(redirect in redirects(), item in 2_usize..6, expression in 0_usize..5, double: bool) {
        let mut items = listing(&redirect);
        let array = items["nftables"].as_array_mut().unwrap();
        let copy = array[item].clone();
        if double && item >= 4 { array.push(copy) } else { array.remove(item); }
        prop_assert!(!differences(&redirect, &items).is_empty(), "{items}");

        let mut items = listing(&redirect);
        if let Some(array) = items["nftables"][item]["rule"]["expr"].as_array_mut() {
            let at = expression % array.len();
            let copy = array[at].clone();
            if double { array.insert(at, copy) } else { array.remove(at); }
            prop_assert!(!differences(&redirect, &items).is_empty(), "{items}");
        }
    }
}
