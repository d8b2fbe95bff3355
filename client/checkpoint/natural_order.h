// The order people give the tensors of a model: names compared in pieces, numbers by value.
#ifndef WSYNC_CLIENT_CHECKPOINT_NATURAL_ORDER_H_
#define WSYNC_CLIENT_CHECKPOINT_NATURAL_ORDER_H_

#include <string_view>

namespace wsync {

// "layers.2.x" before "layers.10.x". A strict total order: names that differ only in leading zeros compare as text.
bool NaturalLess(std::string_view a, std::string_view b);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_NATURAL_ORDER_H_
