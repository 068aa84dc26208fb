//! The channels of Kubernetes' protocol of remote commands: what the first byte of a frame says.

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const STATUS: u8 = 3;
pub const RESIZE: u8 = 4;
/// What follows is the channel that has ended.
pub const CLOSE: u8 = 255;
