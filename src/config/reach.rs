//! Which tables of delivery streams are of use: those of a delivery stream that some stream can be mapped to.

use std::collections::BTreeSet;

use super::{Config, name};

/// The names of the tables that no stream can ever be mapped to.
pub(super) fn out_of_reach(config: &Config) -> Vec<&str> {
    let targets = configured_targets(config);
    let used: BTreeSet<&str> =
        targets.iter().filter_map(|target| config.delivery_streams.table_of(target)).collect();
    let is_useless = |table: &&str| !used.contains(table) && !is_reached_by_others(config, table);
    config.delivery_streams.iter().map(|(table, _)| table).filter(is_useless).collect()
}

/// The delivery streams that are known from the configuration alone.
fn configured_targets(config: &Config) -> Vec<String> {
    let mut targets = Vec::new();
    for (stream, of_stream) in &config.streams {
        if of_stream.delivery_streams.is_empty() {
            targets.extend(name::fill_template(&config.delivery_stream, stream));
        }
        targets.extend(of_stream.delivery_streams.iter().cloned());
    }
    if !config.only_configured_streams && !name::is_template(&config.delivery_stream) {
        targets.push(config.delivery_stream.clone());
    }
    targets
}

/// Whether a stream that is not configured can be mapped to a delivery stream of this table.
fn is_reached_by_others(config: &Config, table: &str) -> bool {
    let template = &config.delivery_stream;
    if config.only_configured_streams || !name::is_template(template) {
        return false;
    }
    match name::is_template(table) {
        true => name::overlap(template, table),
        false => name::stream_of(template, table).is_some_and(|stream| !config.streams.contains_key(stream)),
    }
}
