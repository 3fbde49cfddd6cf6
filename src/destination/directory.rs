//! Files on this host.
use super::{Call, Outcome};
/// D
#[derive(Debug)]
pub struct Directory;
impl Directory {
    /// c
    pub async fn call(&self, _: Call) -> Outcome {
        Outcome::Accepted
    }
}
