//! Any answer to a call: the destination never panics, says that all was accepted only of a success, and that
//! nothing was accepted only where the service has said so.

#![no_main]

use libfuzzer_sys::fuzz_target;
use standpipe::destination::{Outcome, RecordOutcome};

fuzz_target!(|input: (u16, u8, Vec<u8>)| {
    let (status, records, body) = input;
    let (status, records) = (100 + status % 500, 1 + usize::from(records));
    match standpipe::fuzz::reply(status, &body, records) {
        Outcome::Accepted => assert_eq!(status / 100, 2),
        Outcome::Partial(outcomes) => {
            assert_eq!((status / 100, outcomes.len()), (2, records));
            assert!(outcomes.iter().any(|outcome| *outcome != RecordOutcome::Accepted));
        }
        Outcome::Refused { message, .. } => {
            assert!(status >= 300, "a success that refuses: {message}");
            assert_one_line(&message);
        }
        Outcome::Unknown { message } => assert_one_line(&message),
        Outcome::Lost { .. } => panic!("Firehose has no way to say that events are lost behind it"),
    }
});

/// What is said of an answer is fit for a log, whatever stood in it.
fn assert_one_line(message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(message.chars().count() < 2_000, "{} characters", message.chars().count());
}
