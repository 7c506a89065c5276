//! What must not be shown, and the search for it in whatever form it was written down.

use std::sync::LazyLock;

use rusqlite::types::Value;

pub(crate) const TEXT: &str = "quokkaburrowvellum";
pub(crate) const BLOB: &[u8] = b"zinnia-kestrel-mahogany";
pub(crate) const INTEGER: i64 = 771_625_543_287;
/// With so many digits that no rounding hides it.
pub(crate) const REAL: f64 = 918_273_645_546.375;

/// The folder in which another database lies.
pub(crate) const FOLDER: &str = "wombat-tundra-ochre";

/// The values that are bound as `?1` to `?4`.
pub(crate) fn bound() -> Vec<Value> {
    vec![Value::Text(TEXT.into()), Value::Blob(BLOB.into()), Value::Integer(INTEGER), Value::Real(REAL)]
}

/// A secret in one form.
struct Needle {
    is: String,
    squeezed: String,
}

/// Letters and digits alone, in lower case: so it does not matter how a list is parted, or a text quoted.
fn squeezed(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// As text, in hex and in base 10. Each half by itself, since messages quote parts.
fn of_bytes(name: &str, bytes: &[u8]) -> Vec<Needle> {
    let (begin, end) = (&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]);
    let forms = |part: &str, bytes: &[u8]| {
        let each = |form: fn(&u8) -> String| bytes.iter().map(form).collect::<String>();
        let text = String::from_utf8_lossy(bytes).into_owned();
        [
            ("text", text),
            ("hex", each(|byte| format!("{byte:02x}"))),
            ("hex, each byte", each(|byte| format!("{byte:#04x}"))),
            ("base 10", each(u8::to_string)),
        ]
        .map(|(form, text)| needle(format!("{name}, {part}, as {form}"), &text))
    };
    forms("the begin", begin).into_iter().chain(forms("the end", end)).collect()
}

/// A number of eight bytes, as it is written and as it lies in memory or in the file.
fn of_number(name: &str, text: &str, bytes: [u8; 8]) -> Vec<Needle> {
    let mut needles = vec![needle(format!("{name}, in base 10"), text)];
    let mut reversed = bytes;
    reversed.reverse();
    for bytes in [bytes, reversed] {
        // Small numbers begin or end with zeros, which are not always written.
        let zeros = |&&byte: &&u8| byte == 0;
        let skipped: Vec<u8> = bytes.iter().skip_while(zeros).copied().collect();
        let end = skipped.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let significant = &skipped[..end];
        let hex: String = significant.iter().map(|byte| format!("{byte:02x}")).collect();
        needles.push(needle(format!("{name}, in hex"), &hex));
        let list: String = significant.iter().map(u8::to_string).collect();
        needles.push(needle(format!("{name}, its bytes in base 10"), &list));
    }
    needles
}

fn needle(is: String, text: &str) -> Needle {
    let squeezed = squeezed(text);
    assert!(squeezed.len() >= 8, "{is}: {squeezed} could be there by chance");
    Needle { is, squeezed }
}

static NEEDLES: LazyLock<Vec<Needle>> = LazyLock::new(|| {
    let mut needles = of_bytes("the text", TEXT.as_bytes());
    needles.extend(of_bytes("the blob", BLOB));
    needles.extend(of_number("the integer", &INTEGER.to_string(), INTEGER.to_be_bytes()));
    // All digits before the point, which every way to write it has.
    needles.extend(of_number("the real", &format!("{REAL:.0}"), REAL.to_be_bytes()));
    needles.push(needle("the real, its bits in base 10".into(), &REAL.to_bits().to_string()));
    needles.extend(of_bytes("the folder", FOLDER.as_bytes()));
    needles
});

/// Which secrets are in a text.
pub(crate) fn found_in(text: &str) -> Vec<&'static str> {
    let text = squeezed(text);
    NEEDLES.iter().filter(|needle| text.contains(&needle.squeezed)).map(|needle| &*needle.is).collect()
}

/// Fails if there is a secret in what `place` shows, or if it shows nothing.
pub(crate) fn assert_clean(place: &str, text: &str) {
    assert!(!text.is_empty(), "{place} was not looked at");
    let found = found_in(text);
    assert!(found.is_empty(), "{place} shows {found:?}:\n{text}");
}

/// A search that finds nothing proves something only if it would have found it.
#[test]
fn a_secret_is_found_however_it_is_written_down() {
    let upper = |text: String| text.to_uppercase();
    for value in bound() {
        assert!(!found_in(&format!("{value:?}")).is_empty(), "{value:?}");
        assert!(!found_in(&format!("{value:#?}")).is_empty(), "{value:?}, over several lines");
        assert!(!found_in(&upper(format!("{value:x?}"))).is_empty(), "{value:?}");
    }
    for bytes in [TEXT.as_bytes(), BLOB, FOLDER.as_bytes()] {
        let text = String::from_utf8_lossy(bytes);
        let (begin, end) = text.split_at(text.len() / 2);
        for part in [&*text, begin, end] {
            let hex: String = part.bytes().map(|byte| format!("{byte:02X}")).collect();
            let written = [
                format!("near \"{part}\": syntax error"),
                format!("x'{hex}'"),
                format!("{:?}", part.as_bytes()),
                format!("{:#?}", part.as_bytes()),
                format!("{:x?} {:#x?}", part.as_bytes(), part.as_bytes()),
                part.escape_debug().to_string(),
            ];
            for written in written {
                assert!(!found_in(&written).is_empty(), "{written}");
            }
        }
    }
    for (bytes, reversed) in
        [(INTEGER.to_be_bytes(), INTEGER.to_le_bytes()), (REAL.to_be_bytes(), REAL.to_le_bytes())]
    {
        for bytes in [bytes, reversed] {
            assert!(!found_in(&format!("{bytes:?}")).is_empty(), "{bytes:?}");
            assert!(!found_in(&format!("{bytes:02x?}")).is_empty(), "{bytes:02x?}");
        }
    }
    let numbers = [format!("{INTEGER:x}"), format!("{INTEGER:#018X}"), "771_625_543_287".into()];
    let reals = [format!("{REAL:e}"), format!("{REAL:.2}"), format!("{:x}", REAL.to_bits())];
    for written in numbers.into_iter().chain(reals) {
        assert!(!found_in(&written).is_empty(), "{written}");
    }
    assert_eq!(found_in("UNIQUE constraint failed: vault.words"), Vec::<&str>::new());
}
