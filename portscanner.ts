#!/usr/bin/env -S npx ts-node
/**
 * A TCP port scanner: it tries to connect to ports of one host, and says of
 * each whether something listens there.
 *
 *     npx ts-node portscanner.ts -H localhost -p 54321
 *
 * It prints this, or `[OK] TCP port 54321 is open` as the second line:
 *
 *     Connecting to 127.0.0.1...
 *     [FAILED] TCP port 54321 is closed
 *
 * A port that does not answer is filtered. The exit status is 0 where a port
 * is open, 1 where none is, and 2 where the scan could not be done.
 */
import { isIP, Socket } from 'node:net';
import yargs from 'yargs';

const TIMEOUT = 3; // seconds: enough for a second SYN, which is sent after one (RFC 6298, 2.1)
const WINDOW = 1024; // ports that are probed at the same time, at most
const BURST = 64; // ports between two looks at the answers: closing many sockets at once is slow
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]';

type Answer = 'open' | 'closed' | 'filtered';

let inFlight = 0; // sockets that wait for an answer
const waiting: (() => void)[] = []; // probes that wait for a file descriptor
let progress: NodeJS.Timeout | undefined; // draws the line that shows how far the scan is

process.on('exit', eraseProgress);
process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
  if (code !== 'EPIPE') fail(`cannot print the answers (${code})`);
  process.exit(2); // whoever reads us has gone, as head(1) does
});
process.stderr.on('error', () => {}); // our terminal has gone

const options = yargs(process.argv.slice(2))
  .parserConfiguration({ 'dot-notation': false }) // or -H.x would be a part of -H
  .locale('en') // or it would speak the language of LANG
  .usage(USAGE)
  .option('host', {
    describe: 'IPv4 address, IPv6 address or name (looked up as IPv4)',
    alias: 'H', type: 'string', requiresArg: true, demandOption: true, coerce: parseHost,
  })
  .option('port', { // a string, since a number would let 1e3 and 0x50 pass
    describe: 'TCP ports to scan: 54321, 22,80,443 or 8000-8100',
    alias: 'p', type: 'string', requiresArg: true, demandOption: true, coerce: parsePorts,
  })
  .option('timeout', {
    describe: 'seconds that a port may take to answer, up to 3600',
    alias: 't', type: 'string', requiresArg: true, default: TIMEOUT, coerce: parseTimeout,
  })
  .option('open', { describe: 'print only the open ports', type: 'boolean', default: false })
  .alias('help', 'h')
  .describe({ help: 'show this help', version: 'show the version' })
  .strictOptions()
  .check(({ _: [surplus] }) => {
    if (surplus !== undefined) throw new Error(`"${surplus}" is too much: ports are joined by commas, as in -p 22,80`);
    return true;
  })
  .fail((message) => {
    fail(`${message}\n${USAGE}`);
    process.exit(2);
  })
  .parseSync();

scan(options.host, options.port, options.timeout, options.open);

/** Prints the address of host and the answer of each port, in the order of ports. The timeout is in seconds. */
async function scan(host: string, ports: number[], timeout: number, openOnly: boolean): Promise<void> {
  const address = await addressOf(host); // gethostbyname()
  console.log(`Connecting to ${address}...`);
  process.exitCode = 1;

  let done = 0;
  const showProgress = () => process.stderr.write(`\r${done} of ${ports.length} ports`);
  if (process.stderr.isTTY && ports.length > 1) progress = setInterval(showProgress, 100);

  // A window slides over the ports. We wait for its first answer alone, so they are printed in order.
  const answers: Promise<Answer | Error>[] = [];
  for (const port of ports) {
    for (const next of ports.slice(done + answers.length, done + WINDOW)) {
      answers.push(probe(address, next, timeout));
      if ((done + answers.length) % BURST === 0) await new Promise(setImmediate); // take the answers that have come
    }
    const answer = await answers.shift();
    if (answer instanceof Error) return fail(answer.message);
    done++;
    if (answer === 'open') process.exitCode = 0;
    else if (openOnly) continue;
    eraseProgress();
    console.log(`${answer === 'open' ? '[OK]' : '[FAILED]'} TCP port ${port} is ${answer}`);
  }
  clearInterval(progress);
}

/**
 * The IPv4 address of a name; an IPv4 or IPv6 address stays as it is. Fails
 * with ENOTFOUND and other errors of getaddrinfo(3).
 */
function addressOf(host: string): Promise<string> {
  return new Promise((resolve) => {
    if (isIP(host)) return resolve(host);
    // A socket looks a name up before it connects. We take the address and leave before it goes on.
    const socket = new Socket();
    socket.connect({ host, port: 1, family: 4 }); // family 4 is AF_INET
    socket.on('lookup', (error: NodeJS.ErrnoException | null, address) => {
      socket.destroy();
      if (error) fail(`cannot find the address of ${host} (${error.code})`);
      else resolve(address);
    });
  });
}

/**
 * What the port answers to a SYN within timeout, in seconds (RFC 9293, 3.5):
 *
 * - SYN-ACK: open, the handshake is done.
 * - RST: closed. An ICMP port unreachable looks the same to connect(2).
 * - nothing, or another ICMP error: filtered, by a firewall as a rule.
 *
 * Where no file descriptor is free, it waits for one. Resolves to an Error on a fault of this machine.
 */
function probe(address: string, port: number, timeout: number): Promise<Answer | Error> {
  return new Promise((resolve) => {
    const socket = new Socket();
    socket.connect(port, address); // socket(AF_INET, SOCK_STREAM), connect()
    inFlight++;

    const settle = (answer: Answer) => {
      if (socket.destroyed) return; // it has answered already
      socket.destroy(); // close()
      inFlight--;
      resolve(answer);
      waiting.shift()?.(); // the descriptor is free
    };
    socket.on('connect', () => settle(isSelfConnection(socket) ? 'closed' : 'open'));
    // An answer of the network, or of the host.
    socket.on('connectionAttemptFailed', (_address, _port, _family, error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED') settle('closed');
      else if (error.code === 'ECONNRESET' || error.code === 'EPIPE') settle('open'); // an RST after the handshake
      else settle('filtered');
    });

    // settimeout(), from the SYN on. An answer that is here goes first: this program may have been stopped for long.
    socket.on('connectionAttempt', () => socket.setTimeout(timeout * 1000, () => setImmediate(settle, 'filtered')));

    // connect() itself failed, and nothing was sent: a fault of this machine, not an answer.
    socket.on('error', ({ code }: NodeJS.ErrnoException) => {
      inFlight--;
      const what = code === 'EADDRNOTAVAIL' ? 'no local address and port is left for' : 'cannot scan';
      if (code === 'EMFILE' && inFlight > 0) {
        waiting.push(() => resolve(probe(address, port, timeout)));
      } else {
        resolve(new Error(`${what} port ${port} of ${address} (${code})`));
        waiting.shift()?.(); // to fail, too
      }
    });
  });
}

/**
 * Whether TCP connected the socket to itself. This happens on the own machine
 * when the port is an ephemeral one, nothing listens there, and the system
 * picks just this one as our local port: the SYN meets itself (simultaneous
 * open, RFC 9293, 3.5).
 */
function isSelfConnection(socket: Socket): boolean {
  return socket.localPort === socket.remotePort && socket.localAddress === socket.remoteAddress;
}

/** The value of --host. Throws where there is none, or more than one. */
function parseHost(host: unknown): string {
  if (typeof host === 'string' && host !== '') return host;
  throw new Error(`-H takes one name or address, not ${JSON.stringify(host)}`);
}

/** The ports of --port, each once, in the order asked. Throws where one is no whole number from 1 to 65535. */
function parsePorts(list: unknown): number[] {
  if (typeof list !== 'string') throw new Error(`-p takes one list, such as 22,80, not ${JSON.stringify(list)}`);
  const ports = new Set<number>();
  for (const part of list.split(',')) {
    const [, first = '', last = first] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(part) ?? [];
    if (!(1 <= Number(first) && Number(first) <= Number(last) && Number(last) <= 65535)) {
      throw new Error(`${JSON.stringify(part)} is neither a port from 1 to 65535 nor a range such as 8000-8100`);
    }
    for (let port = Number(first); port <= Number(last); port++) ports.add(port);
  }
  return [...ports];
}

/** The value of --timeout as a number of seconds. Throws where it is none above 0 and up to 3600. */
function parseTimeout(timeout: unknown): number {
  const seconds = /^\d*(\.\d+)?$/.test(String(timeout)) ? Number(timeout) : 0;
  if (!(seconds > 0 && seconds <= 3600)) {
    throw new Error(`-t takes seconds above 0 and up to 3600, such as 0.5, not ${JSON.stringify(timeout)}`);
  }
  return seconds;
}

/** Takes the progress line away. */
function eraseProgress(): void {
  if (progress) process.stderr.write('\r\x1b[K');
}

/** The one way to fail: says on stderr what failed, and ends with the status of a scan that could not be done. */
function fail(what: string): void {
  clearInterval(progress);
  eraseProgress();
  console.error(`portscanner.ts: ${what}`);
  process.stdout.write('', () => process.exit(2)); // when all that was printed has reached its reader
}
