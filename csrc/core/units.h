// Unit roundoffs: half the distance from 1 to the next number.
#pragma once

namespace streamcca {

constexpr double kUnit32 = 5.9604644775390625e-08;  // 2^-24
constexpr double kUnit64 = 1.1102230246251565e-16;  // 2^-53

// Smallest steps of the types, subnormal.
constexpr double kSmallestStep32 = 1.401298464324817e-45;
constexpr double kSmallestStep64 = 4.9406564584124654e-324;

}  // namespace streamcca
