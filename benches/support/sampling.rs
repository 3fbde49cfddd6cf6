//! How the benches sample.

use std::time::Duration;

use criterion::Criterion;

/// Few and short samples: what counts are the ratios within one group, and a file should take under a minute.
pub fn quick() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .without_plots()
        .configure_from_args()
}
