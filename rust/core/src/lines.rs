//! JSON lines: some fields of each line as columns, and the kept lines byte for byte.
//!
//! Every line is parsed whole, so that a broken one is found, but only the wanted fields are looked at. A line that is
//! blank is no line. NaN, Infinity and -Infinity, which are no JSON and which Python writes, are numbers.

use crate::CoreError;
use crate::threads::{Context, part_size};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// The type of a value: absent and null are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// null, or not there.
    Null,
    /// true or false, in `numbers`.
    Bool,
    /// A whole number that fits 64 bits, in `integers` and `numbers`.
    Integer,
    /// Another number, in `numbers`.
    Float,
    /// A string without its quotes and escapes, in `text`.
    Text,
    /// A list, an object or a larger whole number, as it is written, in `text`.
    Other,
}

/// One field of some lines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Field {
    /// [`Kind`] of each.
    pub kinds: Vec<u8>,
    /// 0 where there is none.
    pub integers: Vec<i64>,
    /// 0 where there is none.
    pub numbers: Vec<f64>,
    /// The texts, end to end.
    pub text: Vec<u8>,
    /// Where each text ends.
    pub ends: Vec<i64>,
}

/// Some lines, read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lines {
    /// How many there are that are not blank.
    pub count: usize,
    /// The wanted fields.
    pub fields: Vec<Field>,
    /// Whether a line is no JSON object; the fields are then of no use.
    pub broken: bool,
}

/// The lines of a block, without their newlines.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    let ends = memchr::memchr_iter(b'\n', block).chain((!block.ends_with(b"\n")).then_some(block.len()));
    ends.map(move |end| &block[std::mem::replace(&mut start, end + 1)..end]).filter(|line| !blank(line))
}

fn blank(line: &[u8]) -> bool {
    line.iter().all(|byte| b" \t\r".contains(byte))
}

/// Some fields of the lines of a block, which ends with a line.
///
/// # Errors
/// Interrupted.
pub fn read(block: &[u8], fields: &[String], context: &Context<'_>) -> Result<Lines, CoreError> {
    read_parts(block, fields, context.threads_for(block.len(), 1 << 20), context)
}

fn read_parts(block: &[u8], fields: &[String], threads: usize, context: &Context<'_>) -> Result<Lines, CoreError> {
    let size = part_size(block.len(), threads);
    let (mut parts, mut start) = (Vec::new(), 0);
    while start < block.len() {
        let aim = (start + size).min(block.len());
        let end = memchr::memchr(b'\n', &block[aim - 1..]).map_or(block.len(), |at| aim + at);
        parts.push(&block[start..end]);
        start = end;
    }
    let mut found = context.each(parts, |part| {
        context.check()?;
        Ok(read_part(part, fields))
    })?;
    let mut all = if found.is_empty() { read_part(&[], fields) } else { found.remove(0) };
    for part in found {
        all.count += part.count;
        all.broken |= part.broken;
        for (field, more) in all.fields.iter_mut().zip(part.fields) {
            let start = field.text.len() as i64;
            field.kinds.extend(more.kinds);
            field.integers.extend(more.integers);
            field.numbers.extend(more.numbers);
            field.text.extend(more.text);
            field.ends.extend(more.ends.into_iter().map(|end| start + end));
        }
    }
    Ok(all)
}

fn read_part(block: &[u8], names: &[String]) -> Lines {
    let mut found = Lines { fields: vec![Field::default(); names.len()], ..Lines::default() };
    let mut cells: Vec<Option<&str>> = vec![None; names.len()];
    for line in lines(block) {
        found.count += 1;
        cells.fill(None);
        let text = std::str::from_utf8(line).ok();
        let fine = text.is_some_and(|text| parse(text, names, &mut cells) || parse_words(text, names, &mut cells));
        let written = fine && found.fields.iter_mut().zip(&cells).all(|(field, cell)| field.push(*cell));
        if !written {
            found.broken = true;
            return found;
        }
    }
    found
}

/// The wanted fields of a line as they are written; false where it is no JSON object.
fn parse<'a>(line: &'a str, names: &[String], cells: &mut [Option<&'a str>]) -> bool {
    let mut parser = serde_json::Deserializer::from_str(line);
    Wanted { names, cells }.deserialize(&mut parser).is_ok() && parser.end().is_ok()
}

/// The same where NaN and Infinity are numbers: they are parsed as zeros that are as long.
#[cold]
fn parse_words<'a>(line: &'a str, names: &[String], cells: &mut [Option<&'a str>]) -> bool {
    let Some(plain) = without_words(line.as_bytes()).and_then(|plain| String::from_utf8(plain).ok()) else {
        return false;
    };
    let mut found = vec![None; names.len()];
    let fine = parse(&plain, names, &mut found);
    for (cell, place) in cells.iter_mut().zip(found) {
        *cell = place.map(|place: &str| {
            let start = place.as_ptr().addr() - plain.as_ptr().addr();
            &line[start..start + place.len()]
        });
    }
    fine
}

/// A line with zeros in place of NaN and Infinity outside of strings; none where it has neither.
fn without_words(line: &[u8]) -> Option<Vec<u8>> {
    let mut plain = line.to_vec();
    let (mut at, mut quoted, mut some) = (0, false, false);
    while at < line.len() {
        let rest = &line[at..];
        match rest[0] {
            b'"' => quoted = !quoted,
            b'\\' if quoted => at += 1,
            b'N' | b'I' | b'-' if !quoted && (at == 0 || b" \t\r:[,".contains(&line[at - 1])) => {
                for (word, zero) in
                    [(&b"NaN"[..], &b"0e0"[..]), (b"Infinity", b"0e000000"), (b"-Infinity", b"-0e000000")]
                {
                    let ends = rest.get(word.len()).is_none_or(|after| b" \t\r,]}".contains(after));
                    if rest.starts_with(word) && ends {
                        plain[at..at + word.len()].copy_from_slice(zero);
                        some = true;
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    some.then_some(plain)
}

impl Field {
    /// Appends a value as it is written; false for what is no JSON after all.
    fn push(&mut self, raw: Option<&str>) -> bool {
        let (mut kind, mut integer, mut number) = (Kind::Null, 0, 0.0);
        if let Some(raw) = raw {
            match raw.as_bytes()[0] {
                b'n' => {}
                b't' | b'f' => (kind, number) = (Kind::Bool, f64::from(u8::from(raw == "true"))),
                b'"' => {
                    kind = Kind::Text;
                    let plain = &raw[1..raw.len() - 1];
                    if memchr::memchr(b'\\', plain.as_bytes()).is_none() {
                        self.text.extend_from_slice(plain.as_bytes());
                    } else {
                        let Ok(text) = serde_json::from_str::<String>(raw) else { return false };
                        self.text.extend_from_slice(text.as_bytes());
                    }
                }
                b'[' | b'{' => kind = Kind::Other,
                _ => match (raw.parse::<i64>(), raw.parse()) {
                    (Ok(whole), _) => (kind, integer, number) = (Kind::Integer, whole, whole as f64),
                    (_, Ok(value)) if !raw.bytes().all(|b| b == b'-' || b.is_ascii_digit()) => {
                        (kind, number) = (Kind::Float, value);
                    }
                    _ => kind = Kind::Other,
                },
            }
            if kind == Kind::Other {
                self.text.extend_from_slice(raw.as_bytes());
            }
        }
        self.kinds.push(kind as u8);
        self.integers.push(integer);
        self.numbers.push(number);
        self.ends.push(self.text.len() as i64);
        true
    }
}

/// A line as an object of which only some fields are wanted; of a field that is there twice the last counts.
struct Wanted<'a, 'de> {
    names: &'a [String],
    cells: &'a mut [Option<&'de str>],
}

impl<'de> DeserializeSeed<'de> for Wanted<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(at) = map.next_key_seed(Place(self.names))? {
            match at {
                Some(at) => self.cells[at] = Some(map.next_value::<&RawValue>()?.get()),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// The place of a key among the wanted names.
struct Place<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;
    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| name == key))
    }
}

/// The kept lines of a block, byte for byte, each with its newline; `keep` has a flag for each line that is not blank.
/// Also says how many lines there were, which is another number where the flags are of other lines.
#[must_use]
pub fn select(block: &[u8], keep: &[bool]) -> (Vec<u8>, usize) {
    let (mut kept, mut count) = (Vec::with_capacity(block.len()), 0);
    for line in lines(block) {
        if keep.get(count) == Some(&true) {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
        count += 1;
    }
    (kept, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(block: &str) -> Lines {
        let fields = ["a".to_string(), "b".to_string()];
        read(block.as_bytes(), &fields, &Context::new(1, &|| false)).unwrap()
    }

    #[test]
    fn values_are_what_they_are_written_as() {
        let found =
            of("{\"a\": 1, \"b\": \"x\"}\r\n\n{\"b\": \"\\u00e9\\n\", \"a\": -2.5e1, \"c\": [1, {\"a\": 7}]}\n\
             {\"a\": true, \"b\": null}\n{\"a\": [1, 2], \"a\": 9223372036854775808}");
        assert_eq!(found.count, 4);
        assert!(!found.broken);
        assert_eq!(found.fields[0].kinds, [Kind::Integer, Kind::Float, Kind::Bool, Kind::Other].map(|kind| kind as u8));
        assert_eq!(found.fields[0].numbers, [1.0, -25.0, 1.0, 0.0]);
        assert_eq!(found.fields[0].text, b"9223372036854775808");
        assert_eq!(found.fields[1].text, "xé\n".as_bytes());
        assert_eq!(found.fields[1].ends, [1, 4, 4, 4]);
    }

    #[test]
    fn words_of_python_are_numbers() {
        let found = of("{\"NaN, \\\" NaN\": [Infinity], \"a\": NaN, \"b\": [NaN ,1]}\n\
             {\"a\":Infinity,\"b\":-Infinity}\n{\"a\": -0, \"b\": \"NaN\"}");
        assert!(!found.broken);
        assert!(found.fields[0].numbers[0].is_nan());
        assert_eq!(found.fields[0].numbers[1..], [f64::INFINITY, 0.0]);
        assert_eq!(found.fields[0].kinds, [Kind::Float, Kind::Float, Kind::Integer].map(|kind| kind as u8));
        assert_eq!(found.fields[1].numbers[1], f64::NEG_INFINITY);
        assert_eq!(found.fields[1].text, b"[NaN ,1]NaN");
    }

    #[test]
    fn broken_lines_are_found_wherever_they_break() {
        for bad in [
            "{\"a\": 1",
            "{\"a\": 1NaN}",
            "{\"a\": NaN5}",
            "{\"a\": -NaN}",
            "{\"a\": +Infinity}",
            "{NaN: 1}",
            "NaN",
            "[1]",
            "{\"a\": 1} x",
            "{\"z\": [1,,2]}",
            "{\"a\" 1}",
            "\u{1}",
            "{\"a\": \"\\ud800\"}",
        ] {
            assert!(of(&format!("{{\"a\": 1}}\n{bad}\n")).broken, "{bad}");
        }
        assert!(read(b"{\"z\": \"\xff\"}\n", &[], &Context::new(1, &|| false)).unwrap().broken);
    }

    proptest! {
        #[test]
        fn parts_are_the_whole(values in prop::collection::vec((any::<i64>(), "[a-z\\\\\"é\n ]{0,9}"), 0..40), threads in 1..5usize) {
            let line = |(a, b): &(i64, String)| serde_json::json!({"a": a, "b": b, "c": [a]}).to_string();
            let block: String = values.iter().map(|value| line(value) + "\n").collect();
            let fields = ["a".to_string(), "b".to_string()];
            let one = read_parts(block.as_bytes(), &fields, threads, &Context::new(threads, &|| false)).unwrap();
            prop_assert_eq!(one.count, values.len());
            prop_assert_eq!(&one.fields[0].integers, &values.iter().map(|value| value.0).collect::<Vec<_>>());
            prop_assert_eq!(&one.fields[1].text, &values.iter().flat_map(|value| value.1.bytes()).collect::<Vec<_>>());
            prop_assert_eq!(&read_part(block.as_bytes(), &fields), &one);
            let keep: Vec<bool> = values.iter().map(|value| value.0 % 2 == 0).collect();
            let kept: String = values.iter().filter(|value| value.0 % 2 == 0).map(|value| line(value) + "\n").collect();
            prop_assert_eq!(select(block.as_bytes(), &keep), (kept.into_bytes(), values.len()));
        }

        #[test]
        fn no_bytes_are_too_much(block in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'{'), Just(b'"')], 0..80)) {
            let fields = ["a".to_string()];
            let found = read(&block, &fields, &Context::new(2, &|| false)).unwrap();
            prop_assert!(found.broken || found.fields[0].kinds.len() == found.count);
            prop_assert!(select(&block, &[true; 80]).0.len() <= block.len() + 1);
        }
    }
}
