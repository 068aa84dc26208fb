//! What steps write, line by line.

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Longer lines are cut in pieces, in bytes.
const LINE_BYTES: u64 = 16 << 10;

/// The lines of an output.
pub(super) struct Lines<R> {
    output: R,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(super) fn new(output: R) -> Self {
        Self { output, line: Vec::new() }
    }

    /// The next line without its end, as soon as it is there; nothing when the output has ended, or cannot be read any more.
    pub(super) async fn next(&mut self) -> Option<String> {
        self.line.clear();
        let read = (&mut self.output).take(LINE_BYTES).read_until(b'\n', &mut self.line).await;
        if !matches!(read, Ok(1..)) {
            return None;
        }
        while self.line.pop_if(|byte| matches!(byte, b'\n' | b'\r')).is_some() {}
        Some(String::from_utf8_lossy(&self.line).into_owned())
    }
}
