//! Two reports side by side: each figure of each step that both have, and the second over the first.

use anyhow::Context;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use super::figures::Key;
use super::summary::{StepSummary, Summary, VERSION, show_ratio};

/// Reads two reports and prints their figures side by side.
///
/// # Errors
///
/// A sentence if a file is no report of a profile, or they have no step in common.
pub fn compare(a: &str, b: &str) -> anyhow::Result<String> {
    text(&read(a)?, &read(b)?)
}

fn read(path: &str) -> anyhow::Result<Summary> {
    let text = std::fs::read_to_string(path).with_context(|| format!("`{path}` cannot be read"))?;
    let summary: Summary =
        serde_json::from_str(&text).with_context(|| format!("`{path}` is no report of a profile"))?;
    let version = summary.version;
    anyhow::ensure!(version == VERSION, "`{path}` has version {version}; only {VERSION} is understood");
    Ok(summary)
}

fn text(a: &Summary, b: &Summary) -> anyhow::Result<String> {
    let mut text = String::new();
    for (name, a, b) in [("profile", &a.profile, &b.profile), ("machine", &a.machine.cpu, &b.machine.cpu)] {
        if a != b {
            text += &format!("NOT ALIKE: {name}: A {a}, B {b}\n");
        }
    }
    let both = a.steps.iter().filter_map(|step| {
        let other = b.steps.iter().find(|other| other.name == step.name)?;
        Some((step, other))
    });
    let tables: Vec<String> = both.map(|(a, b)| format!("{}\n{}\n", a.name, table(a, b))).collect();
    anyhow::ensure!(!tables.is_empty(), "the reports have no step in common");
    Ok(text + &tables.concat())
}

fn table(a: &StepSummary, b: &StepSummary) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["", "A", "B", "B / A"]);
    for key in Key::all() {
        if let (Some(a), Some(b)) = (a.figures.get(&key), b.figures.get(&key)) {
            table.add_row([key.title().to_owned(), key.show(*a), key.show(*b), show_ratio(*b, *a)]);
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::summary::tests::example;

    #[test]
    fn figures_of_common_steps_are_divided() {
        let (a, mut b) = (example(), example());
        b.steps[0].figures.insert(Key::CpuNsPerEvent, 200.0);
        b.profile = "other".to_owned();
        let shown = text(&a, &b).unwrap();
        assert!(shown.contains("0.800") && shown.contains("NOT ALIKE: profile"), "{shown}");
        b.steps.clear();
        assert!(text(&a, &b).unwrap_err().to_string().contains("no step in common"));
    }
}
