//! What Entra's refusals mean, and what to do (imds-and-clients §3.1, and Microsoft's list of AADSTS codes). Microsoft warns that
//! texts and codes change: an unknown one is judged by its `error`.

use crate::tokens::{Refusal, RefusalKind, TokenError};

/// What a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalCause {
    /// The secret, certificate or assertion is not one that Entra takes.
    Credential,
    /// The same, and Entra may only not know it yet: a new one reaches all of it within minutes.
    NewCredential,
    /// The assertion's time: this node's clock, most likely.
    Clock,
    /// The tenant.
    Tenant,
    /// The application.
    Application,
    /// The audience.
    Resource,
    /// A policy of the tenant.
    Policy,
    /// It passes by itself.
    Passing,
    /// Something else.
    Other,
}

/// A refusal judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The number behind `AADSTS`, if there is one.
    pub code: Option<u32>,
    /// What it is about.
    pub cause: RefusalCause,
    /// What to do, in a sentence.
    pub action: &'static str,
}

use RefusalCause as Cause;

const SECRET: &str = "put the value (not the id) of a current client secret of the application there; a new one takes some minutes to reach all \
                      of Entra";
const CERTIFICATE: &str = "register this certificate's public part with the application, or use the one that is registered; a new one takes some \
                           minutes to reach all of Entra";
const FEDERATED: &str = "compare issuer, subject and audience of the federated credential of the application with those of the token; a new one \
                         takes some minutes to reach all of Entra";
const APPLICATION: &str = "check spec.clientID and spec.tenantID; the application must be in this tenant, and enabled";
const TENANT: &str = "check spec.tenantID and, for a sovereign cloud, spec.adEndpoint";
const RESOURCE: &str = "check the audience that is asked for; an application for it must exist in the tenant, and this one be allowed to use it";
const CLOCK: &str = "set this node's clock right (NTP)";
const POLICY: &str = "a policy of the tenant forbids it: ask the tenant's administrator";
const WAIT: &str = "it passes by itself";
const OTHER: &str = "look the code up in Microsoft's list of AADSTS errors";

/// Codes by what they are about.
const CODES: &[(u32, Cause, &str)] = &[
    (7_000_215, Cause::NewCredential, SECRET),
    (
        7_000_222,
        Cause::Credential,
        "the client secret or certificate has expired: make a new one for the application and put it there",
    ),
    (7_000_216, Cause::Credential, "give it a credential: the request had none that Entra could read"),
    (700_027, Cause::NewCredential, CERTIFICATE),
    (700_030, Cause::Credential, "the certificate's subject name is not one that the application trusts"),
    (50_012, Cause::NewCredential, CERTIFICATE),
    (
        50_013,
        Cause::Credential,
        "the assertion is not valid: check that the certificate, or the cluster's issuer, is the one that Entra knows",
    ),
    (700_024, Cause::Clock, CLOCK),
    (700_021, Cause::Credential, APPLICATION),
    (700_023, Cause::Credential, "the assertion's audience is not Entra's: check spec.adEndpoint"),
    (70_021, Cause::NewCredential, FEDERATED),
    (700_211, Cause::NewCredential, FEDERATED),
    (700_212, Cause::NewCredential, FEDERATED),
    (700_213, Cause::NewCredential, FEDERATED),
    (700_016, Cause::Application, APPLICATION),
    (700_011, Cause::Application, APPLICATION),
    (7_000_112, Cause::Application, APPLICATION),
    (7_000_229, Cause::Application, APPLICATION),
    (90_002, Cause::Tenant, TENANT),
    (900_023, Cause::Tenant, TENANT),
    (500_011, Cause::Resource, RESOURCE),
    (50_001, Cause::Resource, RESOURCE),
    (50_105, Cause::Resource, RESOURCE),
    (501_051, Cause::Resource, RESOURCE),
    (70_011, Cause::Resource, RESOURCE),
    (28_002, Cause::Resource, RESOURCE),
    (1_002_012, Cause::Resource, RESOURCE),
    (53_003, Cause::Policy, POLICY),
    (50_034, Cause::Other, OTHER),
    (90_033, Cause::Passing, WAIT),
    (90_006, Cause::Passing, WAIT),
    (90_024, Cause::Passing, WAIT),
    (90_012, Cause::Passing, WAIT),
    (50_033, Cause::Passing, WAIT),
    (90_055, Cause::Passing, WAIT),
    (50_196, Cause::Passing, WAIT),
];

impl Verdict {
    /// Judges by a code, or by `error` where the code says nothing.
    pub fn new(code: Option<u32>, error: RefusalKind) -> Self {
        let known = code.and_then(|code| CODES.iter().find(|(known, ..)| *known == code));
        let (cause, action) = known.map_or_else(
            || match error {
                RefusalKind::InvalidClient => {
                    (Cause::Credential, "check that the credential is one of the application's, and has not expired")
                }
                RefusalKind::InvalidResource | RefusalKind::InvalidScope => (Cause::Resource, RESOURCE),
                RefusalKind::UnauthorizedClient => (Cause::Application, APPLICATION),
                RefusalKind::InvalidRequest | RefusalKind::AccessDenied => (Cause::Other, OTHER),
            },
            |(_, cause, action)| (*cause, *action),
        );
        Self { code, cause, action }
    }

    /// Judges a refusal by the code in its description.
    pub fn of(refusal: &Refusal) -> Self {
        Self::new(code(&refusal.description), refusal.error)
    }

    /// Whether another credential may be taken where this one was not.
    pub(crate) const fn is_credential(self) -> bool {
        matches!(self.cause, Cause::Credential | Cause::NewCredential | Cause::Clock)
    }

    /// In a word, as the `reason` of a condition.
    pub const fn reason(self) -> &'static str {
        match self.cause {
            Cause::Credential => "CredentialRefused",
            Cause::NewCredential => "CredentialNotKnown",
            Cause::Clock => "ClockSkew",
            Cause::Tenant => "TenantNotFound",
            Cause::Application => "ApplicationNotFound",
            Cause::Resource => "AudienceRefused",
            Cause::Policy => "ForbiddenByPolicy",
            Cause::Passing => "EntraUnavailable",
            Cause::Other => "Refused",
        }
    }
}

/// The number behind the first `AADSTS`.
fn code(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("AADSTS")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// What went wrong and what to do.
pub(crate) fn explain(error: &TokenError) -> String {
    match error {
        TokenError::Refused(refusal) => {
            let action = Verdict::of(refusal).action;
            format!("{}: {action}", refusal.description.trim_end_matches(['.', ' ']))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_code_then_by_word() {
        let of = |error, description: &str| {
            Verdict::of(&Refusal { error, description: description.to_owned(), trace_id: None })
        };
        let invalid = RefusalKind::InvalidClient;
        let verdict = of(invalid, "AADSTS7000215: Invalid client secret provided.");
        assert_eq!(
            (verdict.code, verdict.cause, verdict.reason()),
            (Some(7_000_215), Cause::NewCredential, "CredentialNotKnown")
        );
        assert_eq!(of(invalid, "AADSTS7000222: …").cause, Cause::Credential);
        assert_eq!(of(RefusalKind::InvalidRequest, "AADSTS90002: Tenant 'x' not found.").cause, Cause::Tenant);
        // Without a code, with one that is not known, with one that cannot be a number.
        assert_eq!((of(invalid, "no").code, of(invalid, "no").cause), (None, Cause::Credential));
        assert_eq!(of(RefusalKind::UnauthorizedClient, "AADSTS1: x").cause, Cause::Application);
        assert_eq!(of(RefusalKind::InvalidScope, "AADSTS99999999999: x").code, None);
        assert_eq!(of(RefusalKind::AccessDenied, "AADSTS").cause, Cause::Other);
    }

    #[test]
    fn no_code_is_there_twice() {
        for (n, (code, ..)) in CODES.iter().enumerate() {
            assert!(!CODES[..n].iter().any(|(other, ..)| other == code), "{code}");
        }
    }

    #[test]
    fn what_to_do_is_said() {
        let description = "AADSTS90002: Tenant 'x' not found.".to_owned();
        let error = TokenError::Refused(Refusal { error: RefusalKind::InvalidRequest, description, trace_id: None });
        assert_eq!(
            explain(&error),
            "AADSTS90002: Tenant 'x' not found: check spec.tenantID and, for a sovereign cloud, spec.adEndpoint"
        );
    }
}
