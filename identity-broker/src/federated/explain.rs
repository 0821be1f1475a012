//! What Entra's refusals of an assertion mean, and what to do.

use super::Assertion;

/// What to do about a refusal with this AADSTS code, with what was sent: issuer, subject and audience are no secrets, and the
/// federated credential has to have exactly these. `None` when the code is not about federation.
///
/// Codes from Microsoft's list and its troubleshooting pages for workload identity federation.
pub fn explain(code: u32, client_id: &str, assertion: &Assertion) -> Option<String> {
    let (issuer, subject) = (assertion.issuer(), assertion.subject());
    let audience = assertion.audiences().join(", ");
    let sent = format!("sent were issuer '{issuer}', subject '{subject}', audience '{audience}'");
    let create = format!(
        "az ad app federated-credential create --id {client_id} --parameters '{{\"name\": \"entra-pod-identity\", \"issuer\": \
         \"{issuer}\", \"subject\": \"{subject}\", \"audiences\": [\"{audience}\"]}}'"
    );
    let spreads = "a new one takes some minutes to reach all of Entra";
    let match_all = "it has to have exactly these, to the letter (case and a trailing slash count)";
    Some(match code {
        70_021 => format!(
            "application {client_id} has no federated credential for this assertion; {sent}. Create one ({create}); {match_all}; {spreads}"
        ),
        700_211 => format!(
            "no federated credential of application {client_id} has this issuer; {sent}; {match_all}. Create one ({create}), or correct it; {spreads}"
        ),
        700_212 => format!(
            "no federated credential of application {client_id} has this audience; {sent}; {match_all}. Correct it, or spec.federated.audience; {spreads}"
        ),
        700_213 => format!(
            "no federated credential of application {client_id} has this subject; {sent}; {match_all}. Create one ({create}), or correct it; {spreads}"
        ),
        700_238 => format!(
            "the tenant does not take assertions of this issuer; {sent}. Ask its administrator which issuers its policies allow"
        ),
        700_024 => format!(
            "the assertion is not within its time; {sent}. Set the clocks of this node and of the API server right (NTP)"
        ),
        50_013 => format!(
            "the assertion's signature does not fit the issuer's keys; {sent}. The issuer's /openid/v1/jwks must show the keys that the API server signs with now: after a change of keys, publish the new ones first"
        ),
        50_027 => format!(
            "the assertion is no token that Entra can read, or not signed with RS256; {sent}. The API server's signing key must be RSA"
        ),
        90_061 => format!(
            "Entra cannot fetch the issuer's keys; {sent}. {}/.well-known/openid-configuration must be reachable from the internet, over https, with a certificate of a public CA",
            issuer.trim_end_matches('/')
        ),
        700_016 | 700_011 => {
            format!("application {client_id} is not in this tenant: check spec.clientID and spec.tenantID")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::assertion::tests::token, *};

    #[test]
    fn names_what_was_sent_and_what_to_do() {
        let claims = json!({"iss": "https://oidc.example/", "sub": "system:serviceaccount:ns:node", "aud": ["api://AzureADTokenExchange"], "exp": 1});
        let text = token(&claims);
        let assertion = Assertion::read(text.clone().into(), "it").unwrap();
        let codes = [70_021, 700_211, 700_212, 700_213, 700_238, 700_024, 50_013, 50_027, 90_061, 700_016];
        let said: Vec<_> = codes
            .iter()
            .map(|code| {
                format!("AADSTS{code}: {}", explain(*code, "11111111-1111-1111-1111-111111111111", &assertion).unwrap())
            })
            .collect();
        let said = said.join("\n");
        assert!(!text.split('.').any(|part| said.contains(part)), "{said}");
        insta::assert_snapshot!(said);
        assert_eq!(explain(7_000_215, "x", &assertion), None);
    }
}
