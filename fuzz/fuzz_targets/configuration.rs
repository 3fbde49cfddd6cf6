//! Any text as a configuration file: reading and resolving it never panic, and whatever is wrong is said with the
//! file, on one line that can be printed.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Err(errors) = standpipe::fuzz::configuration(text) else { return };
    assert!(errors.iter().next().is_some(), "an error says what is wrong");
    for error in errors.iter() {
        let line = error.to_string();
        assert!(line.contains("fuzz.toml"), "it does not say where: {line}");
        assert!(!line.chars().any(|c| c.is_control() && c != '\t'), "{line:?}");
        assert!(line.chars().count() < 2_000, "{} characters", line.chars().count());
    }
});
