//! What epiniod does, seen from outside: one module per behaviour.

mod applications;
mod architecture;
mod base_images;
mod support;
