//! What people get wrong in time boxes and grants: it is named, and gives no access. The API server in memory has neither the
//! CRDs' rules nor the admission policies, so that this is what the controller makes of what got past them.

use super::{
    grants::{begin, grant, granting, install, jit, phase, stamps, until_phase},
    *,
};
use crate::{
    runtime::testing::GRANTS,
    schedule::{Gate, Passage},
};

fn condition(object: &Value, type_: &str) -> String {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|condition| condition["type"] == type_);
    found.map_or_else(String::new, |c| {
        let text = |field: &str| c[field].as_str().unwrap_or_default().to_owned();
        format!("{} {}: {}", text("status"), text("reason"), text("message"))
    })
}

/// Approved as it should be, whatever else is wrong.
fn approved(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = grant("g");
    object["spec"]["approvals"] = json!([{"by": "bob"}]);
    change(&mut object["spec"]);
    object
}

#[tokio::test(start_paused = true)]
async fn a_box_that_means_nothing_is_named_and_stays_closed_even_with_a_grant() {
    let window = |schedule: &str, duration: &str, zone: &str| json!({"windows": [{"schedule": schedule, "duration": duration, "timeZone": zone}]});
    let mut said = Vec::new();
    for time_box in [
        window("0 0 30 2 *", "1h", "UTC"),
        window("every day", "1h", "UTC"),
        window("0 0 * * *", "1h", "Mars/Olympus"),
        window("0 0 * * *", "0s", "UTC"),
        window("0 0 * * *", "-1h", "UTC"),
        json!({"notBefore": "2026-12-01T00:00:00Z", "notAfter": "2026-11-01T00:00:00Z"}),
        json!({"notAfter": ""}),
    ] {
        let server = jit();
        install(&server, 3600);
        let mut object = granting("jit");
        for (key, value) in time_box.as_object().unwrap() {
            object["spec"]["timeBox"][key] = value.clone();
        }
        server.put(BINDINGS, object);
        server.put(GRANTS, approved(|_| {}));
        let rig = Rig::on(&server, "a");
        let_it_settle().await;
        let object = server.get(BINDINGS, "team", "jit").unwrap();
        assert!(condition(&object, "Open").starts_with("False "), "{time_box}: {object:#}");
        said.push(format!("{time_box}\n    {}", condition(&object, "Valid")));
        // What nodes make of it, even with a grant that never ends.
        let spec = serde_json::from_value(object["spec"]["timeBox"].clone()).unwrap();
        let gate = Gate::new(Some(&spec), None).unwrap();
        for second in [0, 3600, 86_400, 86_400 * 365] {
            let now = begin() + SignedDuration::from_secs(second);
            let passage = gate.now(now, Some(Timestamp::MAX));
            assert!(matches!(passage, Passage::Closed { opens: None, .. }), "{time_box}: {passage:?}");
        }
        rig.stop().await;
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_may_not_be_is_told_why_and_gives_nothing() {
    let mut said = Vec::new();
    let cases: [(&str, Value); 7] = [
        ("longer than the binding allows", approved(|spec| spec["duration"] = json!("61m"))),
        ("no time at all", approved(|spec| spec["duration"] = json!("0s"))),
        ("less than none", approved(|spec| spec["duration"] = json!("-5m"))),
        ("approved by the requester", approved(|spec| spec["approvals"] = json!([{"by": "ann"}]))),
        ("approved by a stranger", approved(|spec| spec["approvals"] = json!([{"by": "eve", "groups": ["bob"]}]))),
        ("approved by nobody", approved(|spec| spec["approvals"] = json!([{"by": ""}]))),
        ("asked by nobody", approved(|spec| spec["requestedBy"] = json!(""))),
    ];
    for (what, object) in cases {
        let server = jit();
        install(&server, 3600);
        server.put(GRANTS, object);
        let rig = Rig::on(&server, "a");
        let_it_settle().await;
        let object = server.get(GRANTS, "team", "g").unwrap();
        said.push(format!("{what}: {}\n    {}", phase(&server, "g").unwrap(), condition(&object, "Active")));
        assert_eq!(server.count(|call| call.body["status"]["phase"] == "Active"), 0, "{what}");
        assert_eq!(stamps(&server), [Value::Null, Value::Null], "{what}");
        rig.stop().await;
    }
    // Its binding goes while it is active.
    let server = jit();
    install(&server, 3600);
    server.put(GRANTS, approved(|_| {}));
    let rig = Rig::on(&server, "a");
    server.until("stamped", |server| stamps(server).iter().filter(|stamp| stamp["name"] == "g").count() == 2).await;
    server.remove(BINDINGS, "team", "jit");
    server.until("no access", |server| stamps(server).is_empty()).await;
    until_phase(&server, "g", "Revoked").await;
    let object = server.get(GRANTS, "team", "g").unwrap();
    said.push(format!("its binding is deleted: Revoked\n    {}", condition(&object, "Active")));
    rig.stop().await;
    insta::assert_snapshot!(said.join("\n"));
}
