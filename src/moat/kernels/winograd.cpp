// 3x3 convolutions by Winograd, and the gradients of their weights, in float32, channels last.
//
// Sources: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308 (the method);
// Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution, arXiv 1803.10986 (why the points
// matter). The points are 0, +-5/8, +-3/2 and infinity: 2.5 times the rounding error of a direct convolution, where the
// usual 0, +-1, +-2 have five times that error. A tile of 4x4 outputs takes 36 multiplications per pair of channels
// instead of 144.
//
// With stride 2, in one dimension, two taps read every other pixel and the third reads the pixels between: two
// convolutions, the first an F(4, 2) with the points +-3/8, +-5/4 and infinity, the second a product. That is 81
// multiplications instead of 144, with the rounding error of a direct convolution. The same holds backwards.
//
// Every output is the sum of the same products in the same order, whatever else is in the batch and whatever the number
// of threads: an image's result depends on the image alone. The gradient of a weight is bitwise reproducible for a
// given number of threads.
//
// Compiled once per instruction set by hatch_build.py, called by moat.kernels.winograd.
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#define INLINE inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 36")
#endif

namespace {

// Tiles per block of a thread: few enough for their transforms to stay in L1 and L2. Weight gradients use larger
// blocks, because each block reads and writes sums of the size of the weight.
constexpr int TILE_BLOCK = 8, GRADIENT_TILE_BLOCK = 24;

// Schemes: in one dimension, the transform of a tile's IN pixels to values at POINTS points, and of these to OUT
// outputs; the next tile begins STEP pixels further. G: a filter's three taps at the points.

// Stride 1: F(4, 3).
struct Plain {
  static constexpr int IN = 6, POINTS = 6, OUT = 4, STEP = 4;
  static constexpr float A = 0.625f, B = 1.5f, A2 = A * A, B2 = B * B;
  static constexpr double NA = 1 / (2.0 * A2 * (A2 - B2)), NB = 1 / (2.0 * B2 * (B2 - A2));
  static constexpr double G[POINTS][3] = {{1 / (double(A2) * B2), 0, 0}, {NA, A * NA, A2 * NA},  {NA, -A * NA, A2 * NA},
                                          {NB, B * NB, B2 * NB},         {NB, -B * NB, B2 * NB}, {0, 0, 1}};

  template <class V>
  static INLINE void to_points(V *t, int step, const V *d) {
    V even_a = d[4] - B2 * d[2], odd_a = d[3] - B2 * d[1], even_b = d[4] - A2 * d[2], odd_b = d[3] - A2 * d[1];
    t[0] = (A2 * B2) * d[0] + (d[4] - (A2 + B2) * d[2]);
    t[step] = even_a + A * odd_a;
    t[2 * step] = even_a - A * odd_a;
    t[3 * step] = even_b + B * odd_b;
    t[4 * step] = even_b - B * odd_b;
    t[5 * step] = (A2 * B2) * d[1] + (d[5] - (A2 + B2) * d[3]);
  }

  template <class V>
  static INLINE void from_points(V *y, int step, const V *m) {
    V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[step] = A * odd_a + B * odd_b;
    y[2 * step] = A2 * even_a + B2 * even_b;
    y[3 * step] = (A2 * A) * odd_a + ((B2 * B) * odd_b + m[5]);
  }

  // The gradient at the points from that of the four outputs.
  template <class V>
  static INLINE void back_to_points(V *t, int step, const V *g) {
    V even_a = g[0] + A2 * g[2], odd_a = A * g[1] + (A2 * A) * g[3];
    V even_b = g[0] + B2 * g[2], odd_b = B * g[1] + (B2 * B) * g[3];
    t[0] = g[0];
    t[step] = even_a + odd_a;
    t[2 * step] = even_a - odd_a;
    t[3 * step] = even_b + odd_b;
    t[4 * step] = even_b - odd_b;
    t[5 * step] = g[3];
  }

  // The gradient of the three taps from that at the points.
  template <class V>
  static INLINE void to_taps(V *w, int step, const V *u) {
    constexpr float na = NA, nb = NB, n0 = 1 / (double(A2) * B2);
    V sum_a = na * (u[1] + u[2]), sum_b = nb * (u[3] + u[4]);
    w[0] = n0 * u[0] + (sum_a + sum_b);
    w[step] = (A * na) * (u[1] - u[2]) + (B * nb) * (u[3] - u[4]);
    w[2 * step] = A2 * sum_a + (B2 * sum_b + u[5]);
  }
};

// F(4, 2) of the outer taps at the first five points, and the middle tap at four more.
struct TwoAndOne {
  static constexpr int POINTS = 9;
  static constexpr float A = 0.375f, B = 1.25f, A2 = A * A, B2 = B * B;
  static constexpr double NA = 1 / (2.0 * A * (A2 - B2)), NB = 1 / (2.0 * B * (B2 - A2));
  static constexpr double G[POINTS][3] = {{NA, 0, A * NA}, {-NA, 0, A * NA}, {NB, 0, B * NB},
                                          {-NB, 0, B * NB}, {0, 0, 1},       {0, 1, 0},
                                          {0, 1, 0},        {0, 1, 0},       {0, 1, 0}};

  // From the five pixels that the outer taps read.
  template <class V>
  static INLINE void to_five(V *t, int step, V d0, V d1, V d2, V d3, V d4) {
    V odd_a = d3 - B2 * d1, even_a = d2 - B2 * d0, odd_b = d3 - A2 * d1, even_b = d2 - A2 * d0;
    t[0] = odd_a + A * even_a;
    t[step] = odd_a - A * even_a;
    t[2 * step] = odd_b + B * even_b;
    t[3 * step] = odd_b - B * even_b;
    t[4 * step] = (A2 * B2) * d0 + (d4 - (A2 + B2) * d2);
  }

  // Four outputs.
  template <class V>
  static INLINE void from_five(V *y, const V *m) {
    V even_a = m[0] + m[1], odd_a = m[0] - m[1], even_b = m[2] + m[3], odd_b = m[2] - m[3];
    y[0] = even_a + even_b;
    y[1] = A * odd_a + B * odd_b;
    y[2] = A2 * even_a + B2 * even_b;
    y[3] = (A2 * A) * odd_a + ((B2 * B) * odd_b + m[4]);
  }
};

// Stride 2.
struct Halving : TwoAndOne {
  static constexpr int IN = 9, OUT = 4, STEP = 8;

  template <class V>
  static INLINE void to_points(V *t, int step, const V *d) {
    to_five(t, step, d[0], d[2], d[4], d[6], d[8]);
    UNROLL for (int i = 0; i < 4; i++) t[(5 + i) * step] = d[2 * i + 1];
  }

  template <class V>
  static INLINE void from_points(V *y, int step, const V *m) {
    V sums[4];
    from_five(sums, m);
    UNROLL for (int i = 0; i < 4; i++) y[i * step] = sums[i] + m[5 + i];
  }
};

// The input gradient for stride 2 and padding 1, whose first tap is the last: twice as many outputs as inputs.
struct Doubling : TwoAndOne {
  static constexpr int IN = 5, OUT = 8, STEP = 4;

  template <class V>
  static INLINE void to_points(V *t, int step, const V *d) {
    to_five(t, step, d[0], d[1], d[2], d[3], d[4]);
    UNROLL for (int i = 0; i < 4; i++) t[(5 + i) * step] = d[i];
  }

  template <class V>
  static INLINE void from_points(V *y, int step, const V *m) {
    V sums[4];
    from_five(sums, m);
    UNROLL for (int i = 0; i < 4; i++) y[2 * i * step] = m[5 + i], y[(2 * i + 1) * step] = sums[i];
  }
};

// A convolution of images and maps of type T, by scheme S.
template <class T, class S>
struct Problem {
  const T *x, *mask;    // (batch, height, width, channels); x counts as 0 where the mask is 0 or below
  const float *weight;  // in the layout of moat_winograd_weight
  const float *bias;
  const T *residual;
  T *y;  // (batch, out_height, out_width, filters)
  int64_t batch, height, width, channels, out_height, out_width, filters, padding;
  bool relu;
  const T *gradient;       // of y, in its shape, for the gradient of the weight
  const T *relu_mask;      // in the shape of y, which becomes 0 where the mask is 0 or below
  const float *gate_bias;  // (filters): with `relu_mask`, products[tile] is the sum of y * (2 * relu_mask - gate_bias)
  float *products;         // (tiles)
  int64_t tiles_down() const { return (out_height + S::OUT - 1) / S::OUT; }
  int64_t tiles_across() const { return (out_width + S::OUT - 1) / S::OUT; }
  int64_t tiles() const { return batch * tiles_down() * tiles_across(); }
  // Offsets in x and y of the row of tiles that contains a tile.
  int64_t row_of_x(int64_t tile) const {
    const int64_t row = tile / tiles_across();
    return (row / tiles_down() * height + row % tiles_down() * S::STEP) * width * channels;
  }
  int64_t row_of_y(int64_t tile) const {
    const int64_t row = tile / tiles_across();
    return (row / tiles_down() * out_height + row % tiles_down() * S::OUT) * out_width * filters;
  }
};

// A tile's image, and the number of tiles above and to the left of it.
struct Tile {
  int64_t image, down, across;
  template <class T, class S>
  Tile(const Problem<T, S> &p, int64_t number)
      : image(number / p.tiles_across() / p.tiles_down()),
        down(number / p.tiles_across() % p.tiles_down()),
        across(number % p.tiles_across()) {}
  INLINE void advance(int64_t tiles_down, int64_t tiles_across) {
    if (++across < tiles_across) return;
    across = 0;
    if (++down < tiles_down) return;
    down = 0;
    image++;
  }
};

// Prefetches a range of memory, a part per point, during the multiplications.
template <class T, int POINTS>
struct Prefetch {
  const T *data;
  int64_t first, last;
  static constexpr int64_t LINE = 64 / sizeof(T);
  INLINE void fetch(int64_t point) const {
    if (!data) return;
    const int64_t lines = (last - first + LINE - 1) / LINE, to = lines * (point + 1) / POINTS;
    for (int64_t n = lines * point / POINTS; n < to; n++) __builtin_prefetch(data + first + n * LINE, 0, 2);
  }
};

struct bfloat16 {
  uint16_t bits;
};

// Vectors of L numbers, unaligned: a map of 8 channels may start at any address.
template <int L>
struct Vectors;
template <>
struct Vectors<8> {
  typedef float Float __attribute__((vector_size(32), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(32)));
  typedef uint16_t Half __attribute__((vector_size(16), aligned(2), may_alias));
  static INLINE Bits widened(Half h) { return __builtin_convertvector(h, Bits); }
  static INLINE Half narrowed(Bits b) { return __builtin_convertvector(b, Half); }
};
template <>
struct Vectors<16> {
  typedef float Float __attribute__((vector_size(64), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(64)));
  typedef uint16_t Half __attribute__((vector_size(32), aligned(2), may_alias));
  static INLINE Bits widened(Half h) { return __builtin_convertvector(h, Bits); }
  static INLINE Half narrowed(Bits b) { return __builtin_convertvector(b, Half); }
};

template <int L, class S, int TILES = TILE_BLOCK>
struct Lanes {
  using V = typename Vectors<L>::Float;
  using Bits = typename Vectors<L>::Bits;
  using Half = typename Vectors<L>::Half;
  static INLINE V load(const float *p) { return *(const V *)p; }
  static INLINE void store(float *p, V v) { *(V *)p = v; }

  // bfloat16 is float32's upper half.
  static INLINE V load(const bfloat16 *p) { return (V)(Vectors<L>::widened(*(const Half *)p) << 16); }
  static INLINE void store(bfloat16 *p, V v) {
#ifdef __AVX512BF16__
    if constexpr (L == 16)
      _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
    else
      _mm_storeu_si128((__m128i *)p, (__m128i)_mm256_cvtneps_pbh((__m256)v));
#else
    const Bits bits = (Bits)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    // NaN stays NaN, whatever its rounding.
    *(Half *)p = Vectors<L>::narrowed((v == v ? rounded : bits | 0x400000) >> 16);
#endif
  }

  // Like PyTorch's relu and its gradient: NaN is not below 0.
  static INLINE V above_zero(V v, V by) { return by <= V{} ? V{} : v; }

  static constexpr int IN = S::IN, OUT = S::OUT, SIDE = S::POINTS, POINTS = SIDE * SIDE;
  // The transform of L channels of a block of tiles: (POINTS, TILES, L).
  static constexpr int64_t POINT = TILES * L, CHUNK = POINTS * POINT;

  // `v`: (channels / L) chunks, starting at this tile; `at(i, j, k)`: the pixel's lanes from channel k on.
  template <class At>
  static INLINE void tile_to_points(At at, int64_t channels, float *v) {
    for (int64_t k = 0; k < channels; k += L, v += CHUNK) {
      V d[SIDE * IN];
      UNROLL for (int j = 0; j < IN; j++) {
        V column[IN];
        UNROLL for (int i = 0; i < IN; i++) column[i] = at(i, j, k);
        S::to_points(d + j, IN, column);
      }
      UNROLL for (int i = 0; i < SIDE; i++) {
        V t[SIDE];
        S::to_points(t, 1, d + i * IN);
        UNROLL for (int j = 0; j < SIDE; j++) store(v + (i * SIDE + j) * POINT, t[j]);
      }
    }
  }

  template <bool MASKED, class T>
  static void read_tile(const Problem<T, S> p, const Tile tile, float *v) {
    const int64_t top = tile.down * S::STEP - p.padding, left = tile.across * S::STEP - p.padding;
    const int64_t row = p.width * p.channels, corner = (tile.image * p.height + top) * row + left * p.channels;
    const T *x = p.x + corner, *mask = MASKED ? p.mask + corner : nullptr;
    auto pixel = [=](int64_t i, int64_t j, int64_t k) {
      const int64_t place = i * row + j * p.channels + k;
      return MASKED ? above_zero(load(x + place), load(mask + place)) : load(x + place);
    };
    if (top >= 0 && left >= 0 && top + IN <= p.height && left + IN <= p.width) {
      tile_to_points(pixel, p.channels, v);
      return;
    }
    const int64_t above = std::max<int64_t>(-top, 0), below = p.height - top;
    const int64_t before = std::max<int64_t>(-left, 0), behind = p.width - left;
    auto or_zero = [=](int64_t i, int64_t j, int64_t k) {
      return i >= above && i < below && j >= before && j < behind ? pixel(i, j, k) : V{};
    };
    tile_to_points(or_zero, p.channels, v);
  }

  template <class T>
  static INLINE void finish(const Problem<T, S> p, int64_t place, int64_t filter, V value, V &product) {
    if (p.residual) value += load(p.residual + place);
    if (p.relu) value = above_zero(value, value);
    if (p.relu_mask) {
      const V relu_mask = load(p.relu_mask + place);
      value = above_zero(value, relu_mask);
      product += value * (2 * relu_mask - load(p.gate_bias + filter));
    }
    store(p.y + place, value);
  }

  template <class T>
  static void write_tile(const Problem<T, S> p, const Tile tile, const float *m) {
    const int64_t top = tile.down * OUT, left = tile.across * OUT;
    const int64_t h = std::min<int64_t>(OUT, p.out_height - top), w = std::min<int64_t>(OUT, p.out_width - left);
    const int64_t row = p.out_width * p.filters;
    int64_t corner = (tile.image * p.out_height + top) * row + left * p.filters;
    V product{};
    for (int64_t k = 0; k < p.filters; k += L, m += CHUNK, corner += L) {
      V t[OUT * SIDE];
      UNROLL for (int j = 0; j < SIDE; j++) {
        V column[SIDE];
        UNROLL for (int i = 0; i < SIDE; i++) column[i] = load(m + (i * SIDE + j) * POINT);
        S::from_points(t + j, SIDE, column);
      }
      const V bias = p.bias ? load(p.bias + k) : V{};
      UNROLL for (int i = 0; i < OUT; i++) {
        V values[OUT];
        S::from_points(values, 1, t + i * SIDE);
        if (h == OUT && w == OUT) {
          UNROLL for (int j = 0; j < OUT; j++) {
            finish(p, corner + i * row + j * p.filters, k, values[j] + bias, product);
          }
        } else if (i < h) {
          for (int j = 0; j < w; j++) finish(p, corner + i * row + j * p.filters, k, values[j] + bias, product);
        }
      }
    }
    if (!p.products) return;
    float sum = 0;
    for (int lane = 0; lane < L; lane++) sum += product[lane];
    p.products[(tile.image * p.tiles_down() + tile.down) * p.tiles_across() + tile.across] = sum;
  }

  // One point of N chunks of m for the first ROWS tiles: v times a panel (channels, N * L) of the weight.
  template <int ROWS, int N>
  static void multiply(const float *v, const float *u, int64_t channels, float *m) {
    V sums[ROWS][N] = {};
    for (int64_t k = 0; k < channels; k += L, v += CHUNK) {
      _Pragma("GCC unroll 2") for (int c = 0; c < L; c++, u += N * L) {
        V factors[N];
        UNROLL for (int n = 0; n < N; n++) factors[n] = load(u + n * L);
        UNROLL for (int i = 0; i < ROWS; i++) {
          UNROLL for (int n = 0; n < N; n++) sums[i][n] += v[i * L + c] * factors[n];
        }
      }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
      UNROLL for (int n = 0; n < N; n++) store(m + i * L + n * CHUNK, sums[i][n]);
    }
  }

  template <int N, int ROWS = TILES>
  static INLINE void multiply_some(int64_t rows, const float *v, const float *u, int64_t channels, float *m) {
    if (rows == ROWS)
      multiply<ROWS, N>(v, u, channels, m);
    else if constexpr (ROWS > 1)
      multiply_some<N, ROWS - 1>(rows, v, u, channels, m);
  }

  // `begin`, `end`: filters.
  template <class T>
  static void read_gradient(const Problem<T, S> &p, const Tile tile, int64_t begin, int64_t end, float *m) {
    const int64_t top = tile.down * OUT, left = tile.across * OUT;
    const int64_t h = p.out_height - top, w = p.out_width - left, row = p.out_width * p.filters;
    const T *corner = p.gradient + (tile.image * p.out_height + top) * row + left * p.filters;
    for (int64_t k = begin; k < end; k += L, m += CHUNK) {
      V d[IN * OUT];
      UNROLL for (int j = 0; j < OUT; j++) {
        V column[OUT];
        UNROLL for (int i = 0; i < OUT; i++) {
          column[i] = i < h && j < w ? load(corner + i * row + j * p.filters + k) : V{};
        }
        S::back_to_points(d + j, OUT, column);
      }
      UNROLL for (int i = 0; i < IN; i++) {
        V t[IN];
        S::back_to_points(t, 1, d + i * OUT);
        UNROLL for (int j = 0; j < IN; j++) store(m + (i * IN + j) * POINT, t[j]);
      }
    }
  }

  // Filters whose sums are kept in registers at a time.
  static constexpr int FILTER_BLOCK = L / 2;

  // Adds the products of `count` tiles to the sums (filters, channels) of one point, for N vectors of channels.
  template <int N>
  static INLINE void add_products(const float *v, const float *m, int64_t count, float *sums, int64_t channels) {
    V total[FILTER_BLOCK][N];
    UNROLL for (int i = 0; i < FILTER_BLOCK; i++) {
      UNROLL for (int n = 0; n < N; n++) total[i][n] = load(sums + i * channels + n * L);
    }
    for (int64_t tile = 0; tile < count; tile++, v += L, m += L) {
      V factors[N];
      UNROLL for (int n = 0; n < N; n++) factors[n] = load(v + n * CHUNK);
      UNROLL for (int i = 0; i < FILTER_BLOCK; i++) {
        UNROLL for (int n = 0; n < N; n++) total[i][n] += m[i] * factors[n];
      }
    }
    UNROLL for (int i = 0; i < FILTER_BLOCK; i++) {
      UNROLL for (int n = 0; n < N; n++) store(sums + i * channels + n * L, total[i][n]);
    }
  }

  // Sums (point, filters, channels) over a range of tiles, for a range of filters.
  template <class T>
  static void sum_products(const Problem<T, S> &p, int64_t first, int64_t last, int64_t begin, int64_t end,
                           float *scratch, float *sums) {
    const int64_t down = p.tiles_down(), across = p.tiles_across(), channels = p.channels;
    float *v = scratch, *m = scratch + channels / L * CHUNK;
    for (int64_t point = 0; point < POINTS; point++)
      std::fill_n(sums + (point * p.filters + begin) * channels, (end - begin) * channels, 0.0f);
    for (int64_t tile = first; tile < last; tile += TILES) {
      const int64_t count = std::min<int64_t>(TILES, last - tile);
      Tile place(p, tile);
      for (int64_t i = 0; i < count; i++, place.advance(down, across)) {
        read_tile<false>(p, place, v + i * L);
        read_gradient(p, place, begin, end, m + i * L);
      }
      for (int64_t point = 0; point < POINTS; point++) {
        const float *of_x = v + point * POINT, *of_y = m + point * POINT;
        for (int64_t f = begin; f < end; f += FILTER_BLOCK) {
          const float *g = of_y + (f - begin) / L * CHUNK + (f - begin) % L;
          float *to = sums + (point * p.filters + f) * channels;
          int64_t k = 0;
          for (; k + 2 * L <= channels; k += 2 * L)
            add_products<2>(of_x + k / L * CHUNK, g, count, to + k, channels);
          if (k < channels) add_products<1>(of_x + k / L * CHUNK, g, count, to + k, channels);
        }
      }
    }
  }

  // The weight's gradient (filters, 3, 3, channels) for a range of filters, from `parts` partial sums.
  static void to_weight(const float *sums, int64_t parts, int64_t channels, int64_t filters, int64_t begin, int64_t end,
                        float *w) {
    const int64_t size = channels * filters;
    for (int64_t f = begin; f < end; f++) {
      for (int64_t k = 0; k < channels; k += L) {
        V d[IN * 3], taps[9];
        UNROLL for (int j = 0; j < IN; j++) {
          V column[IN];
          UNROLL for (int i = 0; i < IN; i++) {
            const float *from = sums + (i * IN + j) * size + f * channels + k;
            column[i] = load(from);
            for (int64_t part = 1; part < parts; part++) column[i] += load(from + part * POINTS * size);
          }
          S::to_taps(d + j, IN, column);
        }
        UNROLL for (int i = 0; i < 3; i++) S::to_taps(taps + i * 3, 1, d + i * IN);
        UNROLL for (int i = 0; i < 9; i++) store(w + (f * 9 + i) * channels + k, taps[i]);
      }
    }
  }

  template <class T>
  static void convolve(const Problem<T, S> &p, int64_t first, int64_t last, float *scratch) {
    const int64_t down = p.tiles_down(), across = p.tiles_across();
    float *v = scratch, *m = scratch + p.channels / L * CHUNK;
    for (int64_t tile = first; tile < last; tile += TILES) {
      const int64_t count = std::min<int64_t>(TILES, last - tile);
      Tile place(p, tile);
      for (int64_t i = 0; i < count; i++, place.advance(down, across)) {
        if (p.mask)
          read_tile<true>(p, place, v + i * L);
        else
          read_tile<false>(p, place, v + i * L);
      }
      const int64_t next = tile + count, after = std::min(next + TILES, last);
      const Prefetch<T, POINTS> x{p.x, p.row_of_x(next), p.row_of_x(after)}, mask{p.mask, x.first, x.last};
      const Prefetch<T, POINTS> y{p.y, p.row_of_y(tile), p.row_of_y(next)}, residual{p.residual, y.first, y.last};
      const Prefetch<T, POINTS> relu_mask{p.relu_mask, y.first, y.last};
      for (int64_t point = 0; point < POINTS; point++) {
        x.fetch(point), mask.fetch(point), y.fetch(point), residual.fetch(point), relu_mask.fetch(point);
        const float *u = p.weight + point * p.channels * p.filters, *from = v + point * POINT;
        float *to = m + point * POINT;
        int64_t k = 0;
        for (; k + 2 * L <= p.filters; k += 2 * L, u += 2 * L * p.channels, to += 2 * CHUNK)
          multiply_some<2>(count, from, u, p.channels, to);
        if (k < p.filters) multiply_some<1>(count, from, u, p.channels, to);
      }
      place = Tile(p, tile);
      for (int64_t i = 0; i < count; i++, place.advance(down, across)) write_tile(p, place, m + i * L);
    }
  }

  // Filters (filters, channels, 3, 3) with any strides -> (point, panel of two or one vectors, channels, panel).
  static void transform(const float *w, const int64_t *strides, int64_t channels, int64_t filters, float *u) {
    float some[POINTS][CHANNEL_BLOCK][L];
    for (int64_t k = 0; k < filters; k += L) {
      const int64_t in_pairs = filters / (2 * L) * 2 * L, panel = k < in_pairs ? 2 * L : L;
      const int64_t begin = k / panel * panel, offset = k - begin;
      for (int64_t c = 0; c < channels; c += CHANNEL_BLOCK) {
        for (int64_t n = 0; n < CHANNEL_BLOCK; n++)
          transform_lanes(w + k * strides[0] + (c + n) * strides[1], strides, &some[0][n][0]);
        // A block of channels at a time, so that consecutive addresses are written together.
        for (int point = 0; point < POINTS; point++) {
          float *to = u + point * channels * filters + begin * channels + c * panel + offset;
          for (int64_t n = 0; n < CHANNEL_BLOCK; n++, to += panel) store(to, load(some[point][n]));
        }
      }
    }
  }

  static constexpr int64_t CHANNEL_BLOCK = 8;

  static void transform_lanes(const float *w, const int64_t *strides, float *u) {
    double g[3][3][L], t[SIDE][3][L];
    for (int i = 0; i < 3; i++)
      for (int j = 0; j < 3; j++)
        for (int lane = 0; lane < L; lane++) g[i][j][lane] = w[lane * strides[0] + i * strides[2] + j * strides[3]];
    for (int i = 0; i < SIDE; i++)
      for (int j = 0; j < 3; j++)
        for (int lane = 0; lane < L; lane++)
          t[i][j][lane] = S::G[i][0] * g[0][j][lane] + S::G[i][1] * g[1][j][lane] + S::G[i][2] * g[2][j][lane];
    for (int i = 0; i < SIDE; i++)
      for (int j = 0; j < SIDE; j++, u += CHANNEL_BLOCK * L)
        for (int lane = 0; lane < L; lane++)
          u[lane] = float(S::G[j][0] * t[i][0][lane] + S::G[j][1] * t[i][1][lane] + S::G[j][2] * t[i][2][lane]);
  }
};

template <class S>
constexpr int64_t points() { return S::POINTS * S::POINTS; }

template <class S>
int64_t scratch_of_one(int64_t channels, int64_t filters, int64_t tiles = TILE_BLOCK) {
  return points<S>() * tiles * (channels + filters);
}

bool wide(int64_t channels, int64_t filters) {
#ifdef __AVX512F__
  return channels % 16 == 0 && filters % 16 == 0;
#else
  return false;
#endif
}

// Starting a thread takes longer than about 2^22 multiplications.
int64_t useful(int64_t threads, int64_t products) { return std::min(threads, 1 + products / (1 << 22)); }

// Calls `work(n, first, last)` for `shares` ranges of `count` items, split at multiples of `group`; returns how many.
template <class Work>
int64_t divide(int64_t count, int64_t group, int64_t shares, Work work) {
  const int64_t groups = (count + group - 1) / group, share = (groups + shares - 1) / shares * group;
  std::vector<std::thread> helpers;
  int64_t n = 1;
  for (; n * share < count; n++) {
    const int64_t first = n * share, last = std::min(first + share, count);
    try {
      helpers.emplace_back(work, n, first, last);
    } catch (const std::system_error &) {
      work(n, first, last);  // The system is out of threads.
    }
  }
  work(0, 0, std::min(share, count));
  for (auto &helper : helpers) helper.join();
  return n;
}

template <class T, class S>
void convolve(const Problem<T, S> &p, int64_t threads, float *scratch) {
  const int64_t size = scratch_of_one<S>(p.channels, p.filters);
  threads = useful(threads, p.tiles() * points<S>() * p.channels * p.filters);
  divide(p.tiles(), TILE_BLOCK, threads, [=](int64_t n, int64_t first, int64_t last) {
    if (wide(p.channels, p.filters))
      Lanes<16, S>::convolve(p, first, last, scratch + n * size);
    else
      Lanes<8, S>::convolve(p, first, last, scratch + n * size);
  });
}

// Threads divide the sums of a large weight by filters, those of a small one by tiles.
bool by_filters(int64_t channels, int64_t filters) { return channels * filters >= 1 << 16; }

template <int L, class T, class S>
void weight_gradient(const Problem<T, S> &p, float *w, int64_t threads, float *scratch) {
  using Gradient = Lanes<L, S, GRADIENT_TILE_BLOCK>;
  const int64_t size = scratch_of_one<S>(p.channels, p.filters, GRADIENT_TILE_BLOCK), weight = p.channels * p.filters;
  threads = useful(threads, p.tiles() * points<S>() * weight);
  float *sums = scratch + threads * size;
  int64_t parts = 1;
  if (by_filters(p.channels, p.filters)) {
    divide(p.filters, L, threads, [=](int64_t n, int64_t begin, int64_t end) {
      Gradient::sum_products(p, 0, p.tiles(), begin, end, scratch + n * size, sums);
    });
  } else {
    parts = divide(p.tiles(), GRADIENT_TILE_BLOCK, threads, [=](int64_t n, int64_t first, int64_t last) {
      Gradient::sum_products(p, first, last, 0, p.filters, scratch + n * size, sums + n * points<S>() * weight);
    });
  }
  divide(p.filters, L, threads, [=](int64_t, int64_t begin, int64_t end) {
    Gradient::to_weight(sums, parts, p.channels, p.filters, begin, end, w);
  });
}

template <class T, class S>
void weight_gradient(const Problem<T, S> &p, float *w, int64_t threads, float *scratch) {
  if (wide(p.channels, p.filters))
    weight_gradient<16>(p, w, threads, scratch);
  else
    weight_gradient<8>(p, w, threads, scratch);
}

}  // namespace

extern "C" {

// The hash of this file, to recognise a library that was compiled from another version.
const char *moat_winograd_source() { return SOURCE; }

// `stride` below: 1, 2, or -2 for the input gradient of stride 2.

// Scratch memory in floats for a number of threads.
int64_t moat_winograd_scratch(int64_t channels, int64_t filters, int64_t stride, int64_t threads) {
  const bool plain = stride == 1;
  return threads * (plain ? scratch_of_one<Plain>(channels, filters) : scratch_of_one<Halving>(channels, filters));
}

int64_t moat_winograd_gradient_scratch(int64_t channels, int64_t filters, int64_t threads) {
  const int64_t parts = by_filters(channels, filters) ? 1 : threads;
  const int64_t sums = parts * points<Plain>() * channels * filters;
  return threads * scratch_of_one<Plain>(channels, filters, GRADIENT_TILE_BLOCK) + sums;
}

// `u`: channels * filters floats per point; both numbers must be multiples of 8. There are 36 points for stride 1, else
// 81. `strides`: of `w` (filters, channels, 3, 3).
void moat_winograd_weight(const float *w, const int64_t *strides, int64_t channels, int64_t filters, int64_t stride,
                          float *u) {
  auto run = [=](auto scheme) {
    using S = decltype(scheme);
    if (wide(channels, filters))
      Lanes<16, S>::transform(w, strides, channels, filters, u);
    else
      Lanes<8, S>::transform(w, strides, channels, filters, u);
  };
  stride == 1 ? run(Plain{}) : run(Halving{});
}

// y = convolution of x (0 where `mask` is given and 0 or below), plus bias, plus residual, through relu if `relu`, and
// 0 where `relu_mask` is given and 0 or below; then `products` (tiles) are the sums of y * (2 * relu_mask - gate_bias).
// x, mask, residual, relu_mask and y are float32, or bfloat16 if `half`; sums are float32.
void moat_winograd_convolve(const void *x, const void *mask, const float *weight, const float *bias,
                            const void *residual, void *y, int64_t batch, int64_t height, int64_t width,
                            int64_t channels, int64_t out_height, int64_t out_width, int64_t filters, int64_t padding,
                            int64_t stride, int64_t relu, int64_t half, int64_t threads, float *scratch,
                            const void *relu_mask, const float *gate_bias, float *products) {
  auto run = [=](auto type, auto scheme) {
    using T = decltype(type);
    using S = decltype(scheme);
    convolve(Problem<T, S>{(const T *)x, (const T *)mask, weight, bias, (const T *)residual, (T *)y, batch, height,
                           width, channels, out_height, out_width, filters, padding, relu != 0, nullptr,
                           (const T *)relu_mask, gate_bias, products},
             threads, scratch);
  };
  auto with = [=](auto scheme) { half ? run(bfloat16{}, scheme) : run(0.0f, scheme); };
  stride == 1 ? with(Plain{}) : stride == 2 ? with(Halving{}) : with(Doubling{});
}

// w (filters, 3, 3, channels): the gradient of the weight of a convolution of x with stride 1, from that of its result.
void moat_winograd_weight_gradient(const void *x, const void *gradient, float *w, int64_t batch, int64_t height,
                                   int64_t width, int64_t channels, int64_t out_height, int64_t out_width,
                                   int64_t filters, int64_t padding, int64_t half, int64_t threads, float *scratch) {
  auto run = [=](auto type) {
    using T = decltype(type);
    weight_gradient(Problem<T, Plain>{(const T *)x, nullptr, nullptr, nullptr, nullptr, nullptr, batch, height, width,
                                      channels, out_height, out_width, filters, padding, false, (const T *)gradient,
                                      nullptr, nullptr, nullptr},
                    w, threads, scratch);
  };
  half ? run(bfloat16{}) : run(0.0f);
}
}
