//! What epiniod does, seen from outside: one module per behaviour.

mod architecture;
mod base_images;
