use proptest::prelude::*;

use super::*;

const EVENTS: &str = "/metadata/scheduledevents";

fn path(path: &str) -> MetadataPath {
    MetadataPath::new(path).unwrap()
}

#[test]
fn a_file_says_who_may_what() {
    let policy = Policy::parse(
        "# of the nodes with GPUs
rules:
- namespaces: [secretive]
  paths: [/metadata]
  action: block
- namespaces: [drainer, monitoring]
  paths: [/metadata/scheduledevents]
  methods: [GET, POST]
- paths:
  - /metadata/instance/compute
  - /metadata/versions
",
    )
    .unwrap();
    for (namespace, verb, at, allowed) in [
        ("secretive", Verb::Get, "/metadata/instance/compute", false),
        ("secretive", Verb::Post, EVENTS, false),
        ("drainer", Verb::Post, EVENTS, true),
        ("monitoring", Verb::Get, EVENTS, true),
        ("other", Verb::Get, EVENTS, false),
        ("other", Verb::Get, "/metadata/instance/compute/name", true),
        ("other", Verb::Post, "/metadata/instance/compute/name", false),
        ("other", Verb::Get, "/metadata/instance", false),
        ("other", Verb::Get, "/metadata/versions", true),
        ("other", Verb::Get, "/metadata/attested/document", false),
    ] {
        assert_eq!(policy.decide(namespace, verb, &path(at)) == Action::Allow, allowed, "{namespace} {verb} {at}");
    }
    let open = Policy::parse("rules:\n- {paths: [/metadata/attested], action: block}\notherwise: allow\n").unwrap();
    for verb in Verb::ALL {
        assert_eq!(open.decide("ns", verb, &path("/metadata/attested/document")), Action::Block);
        assert_eq!(open.decide("ns", verb, &path("/metadata/instance")), Action::Allow);
    }
    assert_eq!(Policy::parse("rules: []\n").unwrap(), Policy::block());
}

#[test]
fn mistakes_are_named_with_line_and_field() {
    let cases = [
        "",
        "allow",
        "rules:\n- paths: [/metadata/identity]\n",
        "rules:\n- paths: [/metadata/instance]\n- action: allow\n  paths:\n  - /metadata/versions\n  - /metadata/Identity/oauth2/token\n",
        "rules:\n- paths: [/metadata/instance/../identity]\n",
        "rules:\n- paths: [/metadata/instance/]\n",
        "rules:\n- paths: ['/metadata/instance;x']\n",
        "rules:\n- paths: [/host/token]\n",
        "rules:\n- paths: ['*']\n",
        "rules:\n- paths: []\n",
        "rules:\n- action: allow\n",
        "rules:\n- path: /metadata/instance\n",
        "rules:\n- paths: /metadata/instance\n",
        "rules:\n- paths: [/metadata/instance]\n  namespaces: ['*']\n",
        "rules:\n- paths: [/metadata/instance]\n  namespaces: []\n",
        "rules:\n- paths: [/metadata/instance]\n  methods: [GET, DELETE]\n",
        "rules:\n- paths: [/metadata/instance]\n  methods: [get]\n",
        "rules:\n- paths: [/metadata/instance]\n  action: permit\n",
        "rules: []\notherwise: maybe\n",
        "rules: []\ndefault: allow\n",
        "rules: []\nrules: []\n",
        "rules: []\n---\nrules: []\n",
        "rules:\n- paths: [/metadata/instance\n",
    ];
    let told: Vec<String> =
        cases.iter().map(|text| format!("{text:?}\n  {}", Policy::parse(text).unwrap_err())).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn size_is_bounded() {
    let many = format!("rules:\n{}", "- paths: [/metadata/instance]\n".repeat(MAX_RULES + 1));
    assert_eq!(Policy::parse(&many).unwrap_err().to_string(), "line 2, column 3: rules: more than 256 rules");
    let long = format!("# {}\nrules: []\n", "x".repeat(MAX_FILE));
    assert!(Policy::parse(&long).unwrap_err().message.contains("larger"));
}

proptest! {
    #[test]
    fn never_panics(text in "(rules|otherwise|paths|methods|namespaces|action|: |- |\\[|\\]|\\{|\\}|\n|  |/metadata|/|,|GET|&a|\\*a|<<|\\PC){0,40}") {
        let _ = Policy::parse(&text);
    }

    /// No file makes a policy by which a credential could be reached: such a path is not even a question one can ask.
    #[test]
    fn a_rule_for_a_credential_is_a_mistake(
        tail in "(/identity|/Identity|/identity\\.x|/issuecredential|/v2/identity)(/[a-z]{1,8}){0,2}", allow: bool,
    ) {
        let action = if allow { "allow" } else { "block" };
        let error = Policy::parse(&format!("rules:\n- paths: ['/metadata{tail}']\n  action: {action}\n")).unwrap_err();
        prop_assert_eq!((error.line, error.field.as_str()), (2, "rules[0].paths[0]"));
        prop_assert!(error.message.contains("leads to credentials"));
    }
}
