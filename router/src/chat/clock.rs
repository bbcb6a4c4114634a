//! Dates for templates that ask for today's: `strftime` in UTC. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What templates take for the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The system's time.
    System,
    /// Always the same.
    Fixed(SystemTime),
}

impl Clock {
    pub(super) fn now(self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Fixed(time) => time,
        }
    }
}

const SECONDS_A_DAY: u64 = 86_400;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `now` as `format` says; unknown directives stay as they are.
pub(super) fn strftime_utc(format: &str, now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        match (character, if character == '%' { characters.next() } else { None }) {
            ('%', Some('-')) => {
                let padded = directive(characters.next().unwrap_or('-'), since);
                let trimmed = padded.trim_start_matches(['0', ' ']);
                text.push_str(if trimmed.is_empty() { "0" } else { trimmed });
            }
            ('%', Some(name)) => text.push_str(&directive(name, since)),
            (plain, _) => text.push(plain),
        }
    }
    text
}

fn directive(name: char, since: Duration) -> String {
    let seconds = since.as_secs();
    let days = seconds / SECONDS_A_DAY;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let weekday = WEEKDAYS.get((days % 7) as usize).copied().unwrap_or_default();
    match name {
        'Y' => year.to_string(),
        'y' => format!("{:02}", year % 100),
        'm' => format!("{month:02}"),
        'd' => format!("{day:02}"),
        'e' => format!("{day:2}"),
        'B' => month_name.to_owned(),
        'b' | 'h' => month_name.chars().take(3).collect(),
        'A' => weekday.to_owned(),
        'a' => weekday.chars().take(3).collect(),
        'H' => format!("{hour:02}"),
        'I' => format!("{:02}", (hour + 11) % 12 + 1),
        'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        'M' => format!("{minute:02}"),
        'S' => format!("{second:02}"),
        'F' => format!("{year}-{month:02}-{day:02}"),
        'T' => format!("{hour:02}:{minute:02}:{second:02}"),
        'f' => format!("{:06}", since.subsec_micros()),
        'j' => format!("{:03}", days - days_before(year) + 1),
        'w' => ((days + 4) % 7).to_string(),
        'u' => ((days + 3) % 7 + 1).to_string(),
        'C' => format!("{:02}", year / 100),
        'D' => format!("{month:02}/{day:02}/{:02}", year % 100),
        'R' => format!("{hour:02}:{minute:02}"),
        'k' => format!("{hour:2}"),
        'l' => format!("{:2}", (hour + 11) % 12 + 1),
        's' => seconds.to_string(),
        'n' => "\n".to_owned(),
        't' => "\t".to_owned(),
        'Z' => "UTC".to_owned(),
        'z' => "+0000".to_owned(),
        '%' => "%".to_owned(),
        other => format!("%{other}"),
    }
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let before = year - 1;
    before * 365 + before / 4 - before / 100 + before / 400 - 719_162
}

/// Year, month and day of a day since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "%d %b %Y", "01 Jan 1970"),
            (951_782_400, "%F %A", "2000-02-29 Tuesday"),
            (1_790_035_199, "%Y-%m-%d %H:%M:%S %p", "2026-09-21 23:59:59 PM"),
            (1_704_067_200, "%-d %B, 100%% %q", "1 January, 100% %q"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime_utc(format, UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
