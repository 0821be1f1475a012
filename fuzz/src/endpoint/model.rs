//! Parameters read naively: by `form_urlencoded`, then every rule checked on the list of pairs. Shares with the product
//! only the reading of an authority as a URL.

use std::collections::BTreeSet;

use identity_broker::endpoint::forms::{Authority, Form, MAX_ID, MAX_PARAMETERS, MAX_RESOURCE, Selector, TokenRequest};

/// The spellings of ids in the forms of IMDS.
const IMDS: &[(&str, Selector)] = &[
    ("client_id", Selector::ClientId),
    ("object_id", Selector::ObjectId),
    ("msi_res_id", Selector::ResourceId),
    ("mi_res_id", Selector::ResourceId),
];
/// Those of App Service.
const APP_SERVICE: &[(&str, Selector)] = &[
    ("clientid", Selector::ClientId),
    ("client_id", Selector::ClientId),
    ("principal_id", Selector::ObjectId),
    ("object_id", Selector::ObjectId),
    ("mi_res_id", Selector::ResourceId),
    ("msi_res_id", Selector::ResourceId),
];

/// The pairs of a text, as `form_urlencoded` reads them.
fn pairs(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// Whether a name is there twice, by any spelling.
pub fn has_duplicates(text: &str) -> bool {
    let names: Vec<String> = pairs(text).into_iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.iter().collect::<BTreeSet<_>>().len() < names.len()
}

/// The request that `text` is in this form; none when it has to be refused, for whatever reason.
pub fn token_request(text: &str, form: Form) -> Option<TokenRequest> {
    let selectors = if form == Form::AppService { APP_SERVICE } else { IMDS };
    let pairs = pairs(text);
    if !well_encoded(text) || has_duplicates(text) || pairs.len() > MAX_PARAMETERS {
        return None;
    }
    let value = |wanted: &str| pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, v)| v.clone());
    let version = value("api-version");
    let versioned = match form {
        Form::Posted => true,
        Form::Imds => version.is_some_and(|v| is_date(&v) && *v >= *"2018-02-01"),
        Form::AppService => version.is_some_and(|v| v == "2017-09-01" || is_date(&v) && *v >= *"2019-08-01"),
    };
    let resource = value("resource").filter(|text| is_plain(text, MAX_RESOURCE) && !text.trim().is_empty());
    let ids: Vec<_> = selectors.iter().filter_map(|(name, selector)| Some((*selector, value(name)?))).collect();
    let identified = ids.len() <= 1 && ids.iter().all(|(_, id)| !id.is_empty() && is_plain(id, MAX_ID));
    let bypass_cache = match value("bypass_cache").map(|text| text.to_ascii_lowercase()).as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return None,
    };
    let authority = match value("authority") {
        None => None,
        Some(text) if is_plain(&text, MAX_ID) => Some(Authority::parse(&text)?),
        Some(_) => return None,
    };
    (versioned && identified).then_some(())?;
    Some(TokenRequest { resource: resource?, identity: ids.into_iter().next(), authority, bypass_cache, form })
}

/// A request written as a form encoder writes it; none when its authority, as URLs are written, is longer than may be sent:
/// what was sent was shorter, unescaped.
pub fn encoded(request: &TokenRequest) -> Option<String> {
    let mut text = form_urlencoded::Serializer::new(String::new());
    if request.form != Form::Posted {
        text.append_pair("api-version", "2019-08-01");
    }
    text.append_pair("resource", &request.resource);
    if let Some((selector, id)) = &request.identity {
        text.append_pair(selector.name(), id);
    }
    if let Some(Authority { host, tenant }) = &request.authority {
        let url = format!("https://{host}/{}", tenant.as_deref().unwrap_or_default());
        if url.len() > MAX_ID {
            return None;
        }
        text.append_pair("authority", &url);
    }
    if request.bypass_cache {
        text.append_pair("bypass_cache", "true");
    }
    Some(text.finish())
}

/// Short enough, and no control characters.
fn is_plain(text: &str, longest: usize) -> bool {
    text.len() <= longest && !text.chars().any(char::is_control)
}

/// Every `%` begins an escape, and what they stand for is UTF-8, in each name and value by itself.
fn well_encoded(text: &str) -> bool {
    text.split(['&', '=']).all(|part| {
        let mut bytes = Vec::new();
        let mut pieces = part.split('%');
        bytes.extend(pieces.next().unwrap_or_default().bytes());
        for piece in pieces {
            let Some(code) = piece.get(..2).filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit())) else {
                return false;
            };
            bytes.extend(u8::from_str_radix(code, 16));
            bytes.extend(piece[2..].bytes());
        }
        String::from_utf8(bytes).is_ok()
    })
}

/// YYYY-MM-DD, and a day that there was or will be.
fn is_date(text: &str) -> bool {
    let digits = |range| text.get(range).filter(|t: &&str| t.bytes().all(|b| b.is_ascii_digit()));
    let number = |range| digits(range).and_then(|text| text.parse::<u16>().ok());
    let (Some(year), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10)) else { return false };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u16::from(leap),
        _ => 0,
    };
    text.len() == 10 && text.get(4..5) == Some("-") && text.get(7..8) == Some("-") && (1..=days).contains(&day)
}
