//! The ledger as bytes and back: magic, schema, length, contents, checksum. Restoring trusts nothing: every invariant is
//! checked, and bytes that are wrong give an error, never other books.

use super::{Fate, Finished, Ledger, LedgerError, Limits, Ready, Remembered, Running, Source, Versions};
use std::collections::BTreeMap;

const MAGIC: &[u8; 8] = b"gkledger";
const SCHEMA: u32 = 1;
const HEAD: usize = MAGIC.len() + 4 + 8;
const TAIL: usize = 8;

impl Ledger {
    /// Everything, as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut body = Writer(Vec::new());
        let Limits { batch_size, max_staleness, max_running } = self.limits;
        for number in [batch_size, max_staleness, max_running.unwrap_or(0), self.first_version, self.version] {
            body.number(number);
        }
        body.number(self.next);
        body.number(self.consumed);
        body.number(self.sources.len() as u64);
        for source in &self.sources {
            body.number(source.name.len() as u64);
            body.0.extend(source.name.as_bytes());
            let counts = [source.admitted, source.consumed, source.evicted, source.requeued];
            counts.into_iter().chain(source.aborted).for_each(|count| body.number(count));
            body.number(source.evicted_since_consumed);
        }
        body.number(self.running.len() as u64);
        for (&ticket, rollout) in &self.running {
            body.number(ticket);
            body.number(rollout.version);
            body.small(rollout.source);
        }
        body.number(self.ready.len() as u64);
        for (&ticket, ready) in &self.ready {
            body.number(ticket);
            body.small(ready.source);
            body.0.push(u8::from(ready.versions.is_some()));
            if let Some(versions) = ready.versions {
                let (oldest, newest, tokens, beyond) = versions.parts();
                for number in [oldest, newest, tokens, beyond as u64, (beyond >> 64) as u64] {
                    body.number(number);
                }
            }
        }
        body.number(self.finished.len());
        for (ticket, finished) in self.finished.iter() {
            body.number(ticket);
            body.small(finished.source);
            body.0.push(finished.fate as u8);
        }
        let body = body.0;
        let mut bytes = Writer(Vec::with_capacity(HEAD + body.len() + TAIL));
        bytes.0.extend(MAGIC);
        bytes.small(SCHEMA);
        bytes.number(body.len() as u64);
        bytes.0.extend(body);
        let checksum = checksum(&bytes.0);
        bytes.number(checksum);
        bytes.0
    }

    /// The books that `snapshot` wrote down.
    ///
    /// # Errors
    /// Bytes that are not whole and unchanged, of another schema, or that break an invariant.
    pub fn restore(bytes: &[u8]) -> Result<Self, LedgerError> {
        let wrong = LedgerError::NotASnapshot { bytes: bytes.len() };
        let head = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong.clone())?;
        let mut head = Reader(head);
        let given = head.small().map_err(|_| wrong.clone())?;
        if given != SCHEMA {
            return Err(LedgerError::Schema { given, expected: SCHEMA });
        }
        let length = head.number().map_err(|_| wrong)?;
        let expected = length.saturating_add((HEAD + TAIL) as u64);
        if bytes.len() as u64 != expected {
            return Err(LedgerError::SnapshotLength { given: bytes.len(), expected });
        }
        let (rest, last) = bytes.split_at(bytes.len() - TAIL);
        let (given, expected) = (Reader(last).number()?, checksum(rest));
        if given != expected {
            return Err(LedgerError::Checksum { given, expected });
        }
        let ledger = contents(&mut Reader(&rest[HEAD..]))?;
        ledger.check().map_err(LedgerError::Contents)?;
        Ok(ledger)
    }
}

fn contents(body: &mut Reader<'_>) -> Result<Ledger, LedgerError> {
    let limits = Limits {
        batch_size: body.number()?,
        max_staleness: body.number()?,
        max_running: Some(body.number()?).filter(|&most| most > 0),
    };
    let (first_version, version, next, consumed) = (body.number()?, body.number()?, body.number()?, body.number()?);
    let mut sources = Vec::new();
    for _ in 0..body.number()? {
        let length = usize::try_from(body.number()?).map_err(|_| CUT)?;
        let name = std::str::from_utf8(body.bytes(length)?).map_err(|_| LedgerError::Contents("names of sources"))?;
        let mut source = Source { name: name.into(), admitted: body.number()?, ..Source::default() };
        for count in [&mut source.consumed, &mut source.evicted, &mut source.requeued] {
            *count = body.number()?;
        }
        for count in &mut source.aborted {
            *count = body.number()?;
        }
        source.evicted_since_consumed = body.number()?;
        sources.push(source);
    }
    let mut running = BTreeMap::new();
    for _ in 0..body.number()? {
        let (ticket, rollout) = (body.number()?, Running { version: body.number()?, source: body.small()? });
        rising(&running, ticket)?;
        running.insert(ticket, rollout);
    }
    let mut ready = BTreeMap::new();
    for _ in 0..body.number()? {
        let (ticket, source) = (body.number()?, body.small()?);
        let versions = match body.byte()? {
            0 => None,
            1 => {
                let (oldest, newest, tokens) = (body.number()?, body.number()?, body.number()?);
                let beyond = u128::from(body.number()?) | u128::from(body.number()?) << 64;
                Some(Versions::of_parts(oldest, newest, tokens, beyond))
            }
            _ => return Err(LedgerError::Contents("ready rollouts")),
        };
        rising(&ready, ticket)?;
        ready.insert(ticket, Ready { versions, source });
    }
    let mut finished = Remembered::default();
    for _ in 0..body.number()? {
        let (ticket, source) = (body.number()?, body.small()?);
        let fates = [Fate::Consumed, Fate::Evicted, Fate::Aborted, Fate::Requeued];
        let fate = fates.get(usize::from(body.byte()?)).ok_or(LedgerError::Contents("finished rollouts"))?;
        finished.push(ticket, Finished { source, fate: *fate });
    }
    if !body.0.is_empty() {
        return Err(CUT);
    }
    Ok(Ledger { limits, first_version, version, next, consumed, sources, running, ready, finished })
}

const CUT: LedgerError = LedgerError::Contents("lengths");

fn rising<T>(known: &BTreeMap<u64, T>, ticket: u64) -> Result<(), LedgerError> {
    match known.keys().next_back() {
        Some(&last) if last >= ticket => Err(LedgerError::Contents("tickets")),
        _ => Ok(()),
    }
}

/// FNV-1a, 64 bits: a change of any one byte changes it for certain.
fn checksum(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    fn small(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], LedgerError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(CUT)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LedgerError> {
        self.bytes(N)?.try_into().map_err(|_| CUT)
    }

    fn number(&mut self) -> Result<u64, LedgerError> {
        self.array().map(u64::from_le_bytes)
    }

    fn small(&mut self) -> Result<u32, LedgerError> {
        self.array().map(u32::from_le_bytes)
    }

    fn byte(&mut self) -> Result<u8, LedgerError> {
        self.array::<1>().map(|[byte]| byte)
    }
}
