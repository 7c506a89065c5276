//! Figures as people read them, short enough for an axis.

/// A duration in microseconds.
pub(super) fn micros(us: f64) -> String {
    match us {
        ..1e3 => format!("{} µs", short(us)),
        1e3..1e6 => format!("{} ms", short(us / 1e3)),
        _ => format!("{} s", short(us / 1e6)),
    }
}

pub(super) fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step =
        UNITS.iter().zip(0_i32..).take_while(|(_, power)| *power == 0 || bytes >= 1024_f64.powi(*power));
    let (unit, power) = step.last().map_or((UNITS[0], 0), |(unit, power)| (*unit, power));
    format!("{} {unit}", short(bytes / 1024_f64.powi(power)))
}

pub(super) fn count(count: f64) -> String {
    match count {
        ..1e4 => short(count),
        1e4..1e6 => format!("{}k", short(count / 1e3)),
        _ => format!("{}M", short(count / 1e6)),
    }
}

/// Three digits at most where there are fewer than four before the point.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_have_units() {
        assert_eq!(
            [micros(0.0), micros(950.4), micros(12_340.0), micros(3e7)],
            ["0 µs", "950 µs", "12.3 ms", "30 s"]
        );
        assert_eq!([bytes(0.0), bytes(4096.0), bytes(1.5 * 1024.0 * 1024.0)], ["0 B", "4 KiB", "1.5 MiB"]);
        assert_eq!([count(0.0), count(9.5), count(1234.0), count(50_000.0)], ["0", "9.5", "1234", "50k"]);
    }
}
