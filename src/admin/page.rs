//! The page at `/`: one document that asks for nothing but `/status`, each second while somebody looks. What stands
//! in it is beside this file, in page/; here it is put together and told to browsers what it may do.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

const DOCUMENT: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

static PAGE: LazyLock<String> =
    LazyLock::new(|| DOCUMENT.replacen("/*style*/", STYLE, 1).replacen("/*script*/", SCRIPT, 1));

/// The one style and the one script by their hashes, pictures from within the page, and questions to this relay:
/// nothing else, from nowhere else, in nobody's frame.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        source(STYLE),
        source(SCRIPT)
    )
});

/// How a policy names an inline style or script.
fn source(text: &str) -> String {
    format!("sha256-{}", base64_simd::STANDARD.encode_to_string(Sha256::digest(text.as_bytes())))
}

pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, PAGE.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Reject;
    use crate::metrics::Drop;

    #[test]
    fn every_reason_is_explained() {
        let reasons =
            Drop::ALL.into_iter().map(Drop::label).chain(Reject::ALL.into_iter().map(Reject::label));
        for reason in reasons {
            assert!(SCRIPT.contains(&format!("\n  {reason}: \"")), "{reason}");
        }
    }

    #[test]
    fn the_page_is_whole_small_and_asks_nobody_else() {
        assert!(PAGE.len() < 60 << 10, "the page has {} bytes", PAGE.len());
        assert!(!PAGE.contains("/*style*/") && !PAGE.contains("/*script*/"));
        for foreign in ["https:", "//cdn", "@import", "url(", " style=\"", " onclick="] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
    }
}
