//! Wanted fields of JSON lines are those of serde_json's own maps, and kept lines are the lines.
#![no_main]

use grpokit_core::lines::{Kind, read, select};
use grpokit_core::threads::Context;
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use serde_json::{from_slice, from_str};
use std::collections::HashMap;

const NAMES: [&str; 3] = ["reward", "group_id", "é"];

#[derive(Debug, PartialEq)]
enum Cell {
    Null,
    Bool(bool),
    Integer(i64),
    Float(u64),
    Text(String),
    Other(String),
}

fn cell(raw: &str) -> Option<Cell> {
    Some(match raw.as_bytes()[0] {
        b'"' => Cell::Text(from_str(raw).ok()?),
        b'[' | b'{' => Cell::Other(raw.into()),
        b'n' => Cell::Null,
        b't' | b'f' => Cell::Bool(from_str(raw).ok()?),
        // serde_json itself is off by a bit at times.
        _ if raw.contains(['.', 'e', 'E', 'N', 'I']) => Cell::Float(raw.parse::<f64>().ok()?.to_bits()),
        _ => raw.parse().map_or_else(|_| Cell::Other(raw.into()), Cell::Integer),
    })
}

/// A line whose NaN and Infinity are strings with this before them.
const MARK: char = '\u{10fffe}';

fn marked(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?;
    let (mut out, mut word, mut quoted, mut escaped) = (String::new(), String::new(), false, false);
    for c in text.chars().chain([' ']) {
        if !quoted && !"{}[],: \t\r\"".contains(c) {
            word.push(c);
            continue;
        }
        match &*std::mem::take(&mut word) {
            word @ ("NaN" | "Infinity" | "-Infinity") => out += &format!("\"{MARK}{word}\""),
            word => out += word,
        }
        // A word is no key.
        let key = out.trim_end().strip_suffix('"').and_then(|out| out.rsplit_once(MARK));
        if !quoted && c == ':' && key.is_some_and(|(_, word)| !word.contains('"')) {
            return None;
        }
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        out.push(c);
    }
    Some(out)
}

/// A marked value as it was written.
fn unmarked(raw: &str) -> String {
    let mut raw = raw.to_string();
    for word in ["NaN", "Infinity", "-Infinity"] {
        raw = raw.replace(&format!("\"{MARK}{word}\""), word);
    }
    raw
}

fn blank(line: &[u8]) -> bool {
    line.iter().all(|byte| b" \t\r".contains(byte))
}

fuzz_target!(|block: &[u8]| {
    if String::from_utf8_lossy(block).contains(MARK) {
        return;
    }
    let names = NAMES.map(String::from);
    let found = read(block, &names, &Context::new(1, &|| false)).unwrap();
    let lines: Vec<&[u8]> = block.split(|&byte| byte == b'\n').filter(|line| !blank(line)).collect();

    let rows: Option<Vec<Vec<Cell>>> = lines
        .iter()
        .map(|line| {
            let record: HashMap<String, Box<RawValue>> =
                from_slice(line).or_else(|_| from_str(&marked(line).unwrap_or_default())).ok()?;
            names
                .iter()
                .map(|name| record.get(name).map_or(Some(Cell::Null), |raw| cell(&unmarked(raw.get()))))
                .collect()
        })
        .collect();
    assert_eq!(found.broken, rows.is_none());
    if let Some(rows) = rows {
        assert_eq!(found.count, rows.len());
        for (at, field) in found.fields.iter().enumerate() {
            assert_eq!(field.kinds.len(), rows.len());
            assert_eq!(field.integers.len(), rows.len());
            let mut start = 0;
            for (row, cells) in rows.iter().enumerate() {
                let end = usize::try_from(field.ends[row]).unwrap();
                let text = || String::from_utf8(field.text[start..end].to_vec()).unwrap();
                let (integer, number) = (field.integers[row], field.numbers[row]);
                let given = match field.kinds[row] {
                    kind if kind == Kind::Null as u8 => Cell::Null,
                    kind if kind == Kind::Bool as u8 => Cell::Bool(number == 1.0),
                    kind if kind == Kind::Integer as u8 => {
                        assert_eq!(number.to_bits(), (integer as f64).to_bits());
                        Cell::Integer(integer)
                    }
                    kind if kind == Kind::Float as u8 => Cell::Float(number.to_bits()),
                    kind if kind == Kind::Text as u8 => Cell::Text(text()),
                    _ => Cell::Other(text()),
                };
                assert_eq!(given, cells[at]);
                start = end;
            }
        }
    }

    let keep: Vec<bool> = (0..lines.len()).map(|at| at % 3 != 0).collect();
    let kept: Vec<u8> =
        lines.iter().zip(&keep).filter(|(_, keep)| **keep).flat_map(|(line, _)| [line, &b"\n"[..]].concat()).collect();
    assert_eq!(select(block, &keep), (kept, lines.len()));
});
