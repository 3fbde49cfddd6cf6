//! Signature Version 4, made anew from the request as it arrived, with a secret that both sides know. It is how
//! the sink finds a client that signs something else than it sends: a digest of other bytes, a header changed
//! after signing. Nothing here knows of the relay or of the SDK; it follows AWS's public description ("Create a
//! signed AWS API request", IAM User Guide).
//!
//! The digest is always that of the body as received, whatever `x-amz-content-sha256` says.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Method, Uri};
use sha2::{Digest, Sha256};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What an Authorization header of Signature Version 4 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Authorization<'a> {
    /// `DATE/REGION/SERVICE/aws4_request`, behind the key's id.
    scope: &'a str,
    /// Names of the headers that are signed, lower case, apart by `;`.
    signed_headers: &'a str,
    /// 64 hexadecimal digits.
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(value: &'a str) -> Result<Self, String> {
        let parts = value.strip_prefix(ALGORITHM).ok_or_else(|| format!("it is not {ALGORITHM}"))?;
        let part = |name: &str| {
            let found = parts.split(',').find_map(|part| part.trim().strip_prefix(name));
            found.ok_or_else(|| format!("it has no `{name}`"))
        };
        let credential = part("Credential=")?;
        let (_key, scope) = credential.split_once('/').ok_or("its credential has no scope")?;
        Ok(Self { scope, signed_headers: part("SignedHeaders=")?, signature: part("Signature=")? })
    }

    /// Date, region and service.
    fn scope_parts(&self) -> Result<[&'a str; 3], String> {
        let mut parts = self.scope.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(date), Some(region), Some(service), Some("aws4_request"), None) => {
                Ok([date, region, service])
            }
            _ => Err(format!("the scope `{}` is not DATE/REGION/SERVICE/aws4_request", self.scope)),
        }
    }
}

/// A request as far as it is signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query.
    pub uri: &'a Uri,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The body as it arrived.
    pub body: &'a [u8],
}

impl Signed<'_> {
    /// Verifies the signature in the Authorization header.
    ///
    /// # Errors
    ///
    /// A sentence on what is wrong with it.
    pub fn verify(&self, secret: &str, service: &str) -> Result<(), String> {
        let stated = self.header(AUTHORIZATION.as_str());
        let authorization = Authorization::parse(&stated).map_err(|why| format!("Authorization: {why}"))?;
        let [_, _, signed_for] = authorization.scope_parts()?;
        if signed_for != service {
            return Err(format!("the signature is for `{signed_for}`, not for `{service}`"));
        }
        self.check_signed_headers(authorization.signed_headers)?;
        let expected = self.sign(secret, authorization.scope, authorization.signed_headers)?;
        match expected == authorization.signature {
            true => Ok(()),
            false => Err("the request signature we calculated does not match the signature you provided; \
                          the canonical request should have been "
                .to_owned()
                + &format!("{:?}", self.canonical(authorization.signed_headers))),
        }
    }

    /// The signature that this request should bear, in hexadecimal digits.
    ///
    /// # Errors
    ///
    /// A sentence if the scope is no scope, or is of another day than `x-amz-date`.
    pub fn sign(&self, secret: &str, scope: &str, signed_headers: &str) -> Result<String, String> {
        let authorization = Authorization { scope, signed_headers, signature: "" };
        let [date, region, service] = authorization.scope_parts()?;
        let moment = self.header("x-amz-date");
        if !moment.starts_with(date) {
            return Err(format!("X-Amz-Date is {moment}, but the scope is of {date}"));
        }
        let canonical = hex(&Sha256::digest(self.canonical(signed_headers)));
        let to_sign = format!("{ALGORITHM}\n{moment}\n{scope}\n{canonical}");
        let key = [date, region, service, "aws4_request"]
            .iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part));
        Ok(hex(&hmac(&key, &to_sign)))
    }

    /// `host` and every `x-amz-…` header must be signed, or whoever stands between may change them.
    fn check_signed_headers(&self, signed_headers: &str) -> Result<(), String> {
        let is_signed = |name: &str| signed_headers.split(';').any(|signed| signed == name);
        let must = |name: &&str| *name == "host" || name.starts_with("x-amz-");
        let names = self.headers.keys().map(hyper::header::HeaderName::as_str);
        match names.filter(must).find(|name| !is_signed(name)) {
            Some(name) => Err(format!("the header `{name}` is not signed")),
            None => Ok(()),
        }
    }

    fn canonical(&self, signed_headers: &str) -> String {
        let mut headers = String::new();
        for name in signed_headers.split(';') {
            writeln!(headers, "{name}:{}", self.header(name)).expect("writing to a string cannot fail");
        }
        format!(
            "{}\n{}\n{}\n{headers}\n{signed_headers}\n{}",
            self.method,
            self.uri.path(),
            canonical_query(self.uri.query().unwrap_or("")),
            hex(&Sha256::digest(self.body))
        )
    }

    /// The values of a header, trimmed, runs of blanks made one, several values apart by a comma.
    fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter();
        let words = |value: &[u8]| {
            String::from_utf8_lossy(value).split_ascii_whitespace().collect::<Vec<_>>().join(" ")
        };
        values.map(|value| words(value.as_bytes())).collect::<Vec<_>>().join(",")
    }
}

/// Parameters in order of their names; each has a `=`.
fn canonical_query(query: &str) -> String {
    let mut parameters: Vec<String> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| match parameter.contains('=') {
            true => parameter.to_owned(),
            false => format!("{parameter}="),
        })
        .collect();
    parameters.sort_unstable();
    parameters.join("&")
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of AWS's own test suite for Signature Version 4.
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const SCOPE: &str = "20150830/us-east-1/service/aws4_request";

    struct Case {
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: &'static [u8],
    }

    impl Case {
        fn new(method: Method, uri: &'static str, headers: &[(&'static str, &str)]) -> Self {
            let mut map = HeaderMap::new();
            for (name, value) in
                [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")].iter().chain(headers)
            {
                map.append(*name, value.parse().unwrap());
            }
            Self { method, uri: Uri::from_static(uri), headers: map, body: b"" }
        }

        fn signed(&self) -> Signed<'_> {
            Signed { method: &self.method, uri: &self.uri, headers: &self.headers, body: self.body }
        }

        fn authorize(&mut self, signed_headers: &str, signature: &str) {
            let value = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{SCOPE}, SignedHeaders={signed_headers}, Signature={signature}"
            );
            self.headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
    }

    fn form() -> Case {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        Case { body: b"Param1=value1", ..Case::new(Method::POST, "/", &headers) }
    }

    const FORM_HEADERS: &str = "content-type;host;x-amz-date";
    const FORM_SIGNATURE: &str = "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a";

    #[test]
    fn signatures_are_those_of_the_aws_test_suite() {
        let get = Case::new(Method::GET, "/", &[]);
        let post = Case::new(Method::POST, "/", &[]);
        let query = Case::new(Method::GET, "/?Param2=value2&Param1=value1", &[]);
        for (case, headers, expected) in [
            (get, "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            (post, "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            (query, "host;x-amz-date", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
            (form(), FORM_HEADERS, FORM_SIGNATURE),
        ] {
            assert_eq!(case.signed().sign(SECRET, SCOPE, headers).as_deref(), Ok(expected), "{}", case.uri);
        }
    }

    #[test]
    fn what_was_changed_after_signing_is_found() {
        let verify = |case: &Case, secret| case.signed().verify(secret, "service");
        let mut case = form();
        case.authorize(FORM_HEADERS, FORM_SIGNATURE);
        assert_eq!(verify(&case, SECRET), Ok(()));
        assert!(verify(&case, "another").is_err());
        assert!(case.signed().verify(SECRET, "firehose").unwrap_err().contains("not for `firehose`"));
        let body = Case { body: b"Param1=value2", headers: case.headers.clone(), ..form() };
        assert!(verify(&body, SECRET).unwrap_err().contains("does not match"));
        let mut header = Case { headers: case.headers.clone(), ..form() };
        header.headers.insert("content-type", "text/plain".parse().unwrap());
        assert!(verify(&header, SECRET).is_err());
        case.headers.insert("x-amz-target", "Firehose".parse().unwrap());
        assert!(verify(&case, SECRET).unwrap_err().contains("`x-amz-target` is not signed"));
    }

    #[test]
    fn damaged_headers_are_told_in_words() {
        for (value, why) in [
            ("", "not AWS4-HMAC-SHA256"),
            ("AWS4-HMAC-SHA256 SignedHeaders=host, Signature=0", "no `Credential=`"),
            ("AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=0", "no scope"),
            ("AWS4-HMAC-SHA256 Credential=x/2015/a, SignedHeaders=host, Signature=0", "DATE/REGION"),
        ] {
            let mut case = form();
            case.headers.insert(AUTHORIZATION, value.parse().unwrap());
            let error = case.signed().verify(SECRET, "service").unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let mut case = form();
        case.headers.insert("x-amz-date", "20150831T000000Z".parse().unwrap());
        assert!(case.signed().sign(SECRET, SCOPE, FORM_HEADERS).unwrap_err().contains("is of 20150830"));
    }
}
