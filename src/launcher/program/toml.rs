//! A reader for the part of TOML that the launcher meets: sections, strings of all four kinds, booleans and arrays.
//!
//! Numbers, dates and inline tables are read over: nothing that the launcher needs is one of them.

pub enum Value {
    Text(String),
    List(Vec<Value>),
    Flag(bool),
    /// Something else, which nobody here asks for.
    Other,
}

/// What stands below `[name]` or `[[name]]`; the first one of a text has no name.
#[derive(Default)]
pub struct Section {
    pub name: String,
    pub entries: Vec<(String, Value)>,
}

/// The sections of a text, in order.
pub fn parse(text: &str) -> Result<Vec<Section>, String> {
    let mut reader = Reader { text, rest: text };
    let mut sections = vec![Section::default()];
    loop {
        reader.skip_blank();
        if reader.rest.is_empty() {
            return Ok(sections);
        }
        if reader.take("[") {
            let twice = reader.take("[");
            let name = reader.key()?;
            reader.expect("]")?;
            if twice {
                reader.expect("]")?;
            }
            sections.push(Section { name, entries: Vec::new() });
        } else {
            let entry = reader.entry()?;
            sections.last_mut().expect("there is a first section").entries.push(entry);
        }
        reader.end_of_line()?;
    }
}

struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Reader<'_> {
    fn entry(&mut self) -> Result<(String, Value), String> {
        let key = self.key()?;
        self.expect("=")?;
        Ok((key, self.value()?))
    }

    /// Bare, quoted or dotted; the parts of a dotted key are joined again.
    fn key(&mut self) -> Result<String, String> {
        let mut key = String::new();
        loop {
            self.skip_spaces();
            if self.rest.starts_with(['"', '\'']) {
                key.push_str(&self.string()?);
            } else {
                let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                let end = self.rest.find(|c| !bare(c)).unwrap_or(self.rest.len());
                if end == 0 {
                    return Err(self.wrong("a key"));
                }
                key.push_str(self.advance(end));
            }
            self.skip_spaces();
            if !self.take(".") {
                return Ok(key);
            }
            key.push('.');
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        self.skip_spaces();
        if self.rest.starts_with(['"', '\'']) {
            return self.string().map(Value::Text);
        }
        if self.take("[") {
            return self.list();
        }
        if self.take("{") {
            return self.inline_table();
        }
        let end = self.rest.find([',', ']', '}', '#', '\n']).unwrap_or(self.rest.len());
        match self.advance(end).trim() {
            "true" => Ok(Value::Flag(true)),
            "false" => Ok(Value::Flag(false)),
            "" => Err(self.wrong("a value")),
            _ => Ok(Value::Other),
        }
    }

    fn list(&mut self) -> Result<Value, String> {
        let mut list = Vec::new();
        loop {
            self.skip_blank();
            if self.take("]") {
                return Ok(Value::List(list));
            }
            list.push(self.value()?);
            self.skip_blank();
            if !self.take(",") {
                self.expect("]")?;
                return Ok(Value::List(list));
            }
        }
    }

    fn inline_table(&mut self) -> Result<Value, String> {
        loop {
            self.skip_blank();
            if self.take("}") {
                return Ok(Value::Other);
            }
            self.entry()?;
            self.skip_blank();
            if !self.take(",") {
                self.expect("}")?;
                return Ok(Value::Other);
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        for (quotes, literal) in [("\"\"\"", false), ("'''", true), ("\"", false), ("'", true)] {
            if self.take(quotes) {
                if quotes.len() == 3 && !self.take("\r\n") {
                    self.take("\n");
                }
                return if literal { self.literal(quotes) } else { self.basic(quotes) };
            }
        }
        Err(self.wrong("a string"))
    }

    fn literal(&mut self, quotes: &str) -> Result<String, String> {
        let end = self.rest.find(quotes).ok_or_else(|| self.wrong("the end of a string"))?;
        let mut value = self.advance(end).to_owned();
        self.take(quotes);
        self.more_quotes(quotes, &mut value);
        Ok(value)
    }

    fn basic(&mut self, quotes: &str) -> Result<String, String> {
        let mut value = String::new();
        loop {
            if self.take(quotes) {
                self.more_quotes(quotes, &mut value);
                return Ok(value);
            }
            match self.next() {
                None => return Err(self.wrong("the end of a string")),
                Some('\n') if quotes.len() == 1 => return Err(self.wrong("the end of a string")),
                Some('\\') => self.escaped(&mut value)?,
                Some(c) => value.push(c),
            }
        }
    }

    /// A string of three quotes may end with up to two of its own.
    fn more_quotes(&mut self, quotes: &str, value: &mut String) {
        while quotes.len() == 3 && self.take(&quotes[..1]) {
            value.push_str(&quotes[..1]);
        }
    }

    fn escaped(&mut self, value: &mut String) -> Result<(), String> {
        let kind = self.next().ok_or_else(|| self.wrong("the end of a string"))?;
        let c = match kind {
            'b' => '\u{8}',
            't' => '\t',
            'n' => '\n',
            'f' => '\u{c}',
            'r' => '\r',
            'e' => '\u{1b}',
            '"' | '\\' => kind,
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            // At the end of a line: the line goes on where the next one has its first word.
            c if c.is_whitespace() => {
                self.rest = self.rest.trim_start();
                return Ok(());
            }
            _ => return Err(self.wrong("an escape")),
        };
        value.push(c);
        Ok(())
    }

    fn code(&mut self, digits: usize) -> Result<char, String> {
        let wrong = self.wrong("the number of a character");
        let digits = self.rest.get(..digits).ok_or_else(|| wrong.clone())?;
        self.rest = &self.rest[digits.len()..];
        u32::from_str_radix(digits, 16).ok().and_then(char::from_u32).ok_or(wrong)
    }

    fn end_of_line(&mut self) -> Result<(), String> {
        self.skip_spaces();
        if self.rest.is_empty() || self.rest.starts_with(['#', '\n', '\r']) {
            return Ok(());
        }
        Err(self.wrong("the end of the line"))
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        self.skip_spaces();
        if self.take(what) { Ok(()) } else { Err(self.wrong(&format!("'{what}'"))) }
    }

    fn take(&mut self, what: &str) -> bool {
        let rest = self.rest.strip_prefix(what);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn advance(&mut self, bytes: usize) -> &str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        taken
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    /// Also ends of lines and comments.
    fn skip_blank(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
        }
    }

    fn wrong(&self, expected: &str) -> String {
        let line = self.text[..self.text.len() - self.rest.len()].matches('\n').count() + 1;
        format!("line {line}: expected {expected}")
    }
}
